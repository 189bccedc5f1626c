"""What CUDA says where a GPU, its driver or its node cannot run this image, and what helps.

These come from wherever a GPU is touched first, as errors without a type of their own, so the one place that explains
errors asks here. Not among them is what may pass by itself, which another attempt can help: ``system not yet
initialized`` (NVSwitches whose manager is starting), busy devices, ``unknown error``. Knows no torch.
"""

from dataclasses import dataclass

from llava_api.failures import Reason

CUDA_MAJOR = 13
"""Of the CUDA that the image's PyTorch is built with."""
OLDEST_DRIVER = 580
"""Branch of the NVIDIA driver from which every CUDA of that major version runs: "minor version compatibility" in
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1."""

_UPDATE = (
    f"this image's CUDA {CUDA_MAJOR} needs NVIDIA's driver {OLDEST_DRIVER} or newer on the node: update it there, or "
    "choose nodes that have it by spec.scheduling.nodeSelector"
)
_ADVICE = (
    # torch's own words (c10/cuda/CUDAFunctions.cpp).
    ("The NVIDIA driver on your system is too old", _UPDATE),
    (
        "Found no NVIDIA driver on your system",
        "the container sees no NVIDIA driver: install it and NVIDIA's container toolkit on the node, as the default "
        "runtime of its containers",
    ),
    (
        "No CUDA GPUs are available",
        "the container sees a driver and no GPU: the node's device plugin has given it none, or "
        "CUDA_VISIBLE_DEVICES hides it",
    ),
    # CUDA's (cudaGetErrorString), which torch and NCCL quote.
    ("CUDA driver version is insufficient for CUDA runtime version", _UPDATE),
    ("API call is not supported in the installed CUDA driver", _UPDATE),
    ("the provided PTX was compiled with an unsupported toolchain", _UPDATE),
    (
        "forward compatibility was attempted on non supported HW",
        f"{_UPDATE}; CUDA's compatibility libraries do not help on this GPU",
    ),
    (
        "system has unsupported display driver / cuda driver combination",
        "the node's kernel module and its driver libraries are of different versions, as after an update without a "
        f"restart: restart the node; {_UPDATE}",
    ),
    (
        "CUDA driver is a stub library",
        "the container has CUDA's stub in place of the driver: remove the stubs folder from LD_LIBRARY_PATH",
    ),
    (
        "no kernel image is available for execution on the device",
        "what is installed in this image is not built for this GPU: choose another one by spec.scheduling.nodeSelector "
        "(README: which GPUs work)",
    ),
)


@dataclass(frozen=True, kw_only=True)
class DeviceFault:
    """What is wrong with a GPU, its driver or its node."""

    reason: Reason
    """DriverTooOld or UnsupportedDevice."""
    message: str


def explain_device_fault(error: BaseException) -> DeviceFault | None:
    """What is wrong with the device and what helps, if that is behind ``error``, also where a library wrapped it."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        for sign, advice in _ADVICE:
            if sign in text:
                line = next(line for line in text.splitlines() if sign in line)
                told = line[line.index(sign) :].partition(". Please")[0][:200]
                reason = Reason.DRIVER_TOO_OLD if advice.startswith(_UPDATE) else Reason.UNSUPPORTED_DEVICE
                return DeviceFault(reason=reason, message=f"{told}: {advice}")
        seen = seen.__cause__ or seen.__context__
    return None
