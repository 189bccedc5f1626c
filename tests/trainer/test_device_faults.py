"""A GPU, a driver or a node that cannot run the image is said to be that, with what helps, in every stage.

The first texts are what torch 2.15 raised over a stand-in for libcuda.so that answered as such a driver does.
"""

import ctypes
import importlib.util
from pathlib import Path

import pytest
import torch

from llava_api.failures import Reason
from llava_trainer.device_faults import CUDA_MAJOR, OLDEST_DRIVER, explain_device_fault
from llava_trainer.errors import StageError
from llava_trainer.gang.world import join
from llava_trainer.logs import ProcessLog
from llava_trainer.outcome import explain
from llava_trainer.training.progress import Progress
from llava_trainer.training.worker import explain_rank_failure
from tests.trainer.trainings import environment_of_one

COUNTING = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error "
)
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_KERNEL = (
    "CUDA error: no kernel image is available for execution on the device\nSearch for "
    "`cudaErrorNoKernelImageForDevice' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for "
    "more information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect.\n"
)
DRIVER = f"needs NVIDIA's driver {OLDEST_DRIVER} or newer"


@pytest.mark.parametrize(
    ("error", "told", "advice"),
    [
        (RuntimeError(TOO_OLD), "is too old (found version 12080): ", DRIVER),
        (RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a "
                      "driver from http://www.nvidia.com/Download/index.aspx"), "Found no NVIDIA driver", "toolkit"),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available: ", "device plugin"),
        (RuntimeError(f"{COUNTING}804: forward compatibility was attempted on non supported HW"),
         "forward compatibility", DRIVER),
        (RuntimeError(f"{COUNTING}803: system has unsupported display driver / cuda driver combination"),
         "system has unsupported", "restart the node"),
        (torch.AcceleratorError(NO_KERNEL), "no kernel image is available for execution on the device: ", "built for"),
        (RuntimeError("NCCL error ... Cuda failure 35 'CUDA driver version is insufficient for CUDA runtime version'"),
         "CUDA driver version is insufficient", DRIVER),
    ],
)  # fmt: skip
def test_what_the_device_cannot_do_is_no_internal_error(error: Exception, told: str, advice: str):
    try:
        raise ValueError("a library could not begin") from error
    except ValueError as wrapped:
        failure = explain(wrapped, "log")
    assert failure.reason is (Reason.DRIVER_TOO_OLD if advice == DRIVER else Reason.UNSUPPORTED_DEVICE)
    assert told in failure.message
    assert advice in failure.message
    assert "http" not in failure.message
    with ProcessLog() as log:
        word = explain_rank_failure(error, 1, log, Progress())
    assert (word.failure.reason, word.failure.message) == (failure.reason, failure.message)
    assert not word.lost_peer


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{COUNTING}802: system not yet initialized"),
        RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env "
                     "variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero."),
        torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(error: Exception):
    assert explain(error, "").reason is Reason.INTERNAL_ERROR


def test_a_stage_that_knows_more_is_believed():
    assert explain(StageError(Reason.INVALID_MODEL, TOO_OLD), "").reason is Reason.INVALID_MODEL


def test_cuda_says_so_in_these_words():
    """Whatever of CUDA's messages is recognised, in the library that the image has."""
    assert torch.version.cuda is not None
    assert int(torch.version.cuda.partition(".")[0]) == CUDA_MAJOR, "the oldest driver is another one"
    (folder,) = importlib.util.find_spec("nvidia.cu13").submodule_search_locations
    text_of = ctypes.CDLL(str(Path(folder) / "lib" / "libcudart.so.13")).cudaGetErrorString
    text_of.restype = ctypes.c_char_p
    for number in (34, 35, 36, 209, 222, 803, 804):
        assert explain_device_fault(RuntimeError(f"CUDA error: {text_of(number).decode()}")), number
    for number in (2, 46, 700, 802, 999):
        assert not explain_device_fault(RuntimeError(f"CUDA error: {text_of(number).decode()}")), number
    torchs = (Path(torch.__file__).parent / "lib" / "libc10_cuda.so").read_bytes()
    for beginning in ("The NVIDIA driver on your system is too old", "Found no NVIDIA driver on your system"):
        assert beginning.encode() in torchs
    assert b"No CUDA GPUs are available" in torchs


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: nothing is wrong with it")
def test_a_machine_without_a_gpu_says_so():
    with environment_of_one(port=1), pytest.raises(RuntimeError) as caught, ProcessLog() as log:
        join("cuda")
    assert explain_rank_failure(caught.value, 0, log, Progress()).failure.reason is Reason.UNSUPPORTED_DEVICE
