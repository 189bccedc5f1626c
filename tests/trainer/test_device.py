"""Proves what is said of GPUs that cannot do what a run asks for. What a real GPU answers is for tests/gpu."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.model.attention import CAUSAL_SDPA, resolve_attention
from llava_trainer.model.flash import find_flash_fault, has_flash_attention
from llava_trainer.training.device import check_device, find_fault
from llava_trainer.training.phase import Phase, phase_of
from tests.trainer.trainings import configure

CUDA = torch.device("cuda", 0)
WHEEL = ("sm_75", "sm_80", "sm_90", "sm_100a", "compute_120")


def test_flash_attn_is_found_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not has_flash_attention()
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert has_flash_attention()


@pytest.fixture
def phase(tmp_path: Path) -> Phase:
    return phase_of(configure(tmp_path, tmp_path / "model"))


def change(phase: Phase, **settings: Any) -> Phase:
    return replace(phase, training=phase.training.model_copy(update=settings))


@pytest.mark.parametrize(
    ("changes", "capability", "has_flash", "told"),
    [
        ({}, (7, 0), True, "7.0 is older than what this image's PyTorch is built for (7.5)"),
        ({"precision": "auto"}, (7, 5), True, "training.precision is auto, and compute capability 7.5 has no bf16"),
        ({"precision": "fp32", "attention": "flash_attention_2"}, (7, 5), True, "computes in bf16"),
        ({"precision": "fp32", "attention": "flash_attention_2"}, (9, 0), True, "computes in bf16"),
        ({"attention": "flash_attention_2"}, (9, 0), False, "flash-attn is not in this image"),
    ],
)
def test_what_the_card_cannot_do_is_named(
    phase: Phase, changes: dict, capability: tuple[int, int], has_flash: bool, told: str
):
    fault = find_fault(change(phase, **changes), capability, built_for=WHEEL, has_flash=has_flash)
    assert told in fault


@pytest.mark.parametrize(
    ("changes", "capability", "built_for"),
    [
        ({"precision": "auto"}, (8, 0), WHEEL),
        ({"precision": "bf16", "attention": "flash_attention_2"}, (12, 0), WHEEL),
        ({"precision": "fp32", "attention": "auto"}, (7, 5), WHEEL),
        ({"precision": "fp32"}, (7, 0), ()),
    ],
)
def test_a_card_that_can_is_taken(phase: Phase, changes: dict, capability: tuple[int, int], built_for: tuple[str, ...]):
    assert find_fault(change(phase, **changes), capability, built_for=built_for, has_flash=True) is None


def test_a_cpu_can_do_everything(phase: Phase):
    check_device(change(phase, attention="flash_attention_2"), torch.device("cpu"))


KERNEL = """
def flash_attn_func(q, k, v, causal):
    assert q.shape == (1, 2, 1, 128) and causal
    {body}
"""


@pytest.fixture
def install_flash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put a flash-attn with this kernel where it is imported from."""

    def install(body: str) -> None:
        (tmp_path / "flash_attn").mkdir()
        (tmp_path / "flash_attn" / "__init__.py").write_text(KERNEL.format(body=body))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(WHEEL))
        # The few numbers lie in the node's memory: what a GPU computes is for tests/gpu.
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *shape, device, **settings: zeros(*shape, **settings))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    find_flash_fault.cache_clear()
    yield install
    find_flash_fault.cache_clear()
    sys.modules.pop("flash_attn", None)


def test_flash_attn_that_runs_is_taken(install_flash: Callable[[str], None], phase: Phase):
    install_flash("return q * k * v")
    assert resolve_attention("auto", CUDA, torch.bfloat16) == "flash_attention_2"
    check_device(change(phase, attention="flash_attention_2", precision="bf16"), CUDA)


@pytest.mark.parametrize(
    "body",
    [
        "raise RuntimeError('CUDA error: no kernel image is available for execution on the device\\nmore')",
        "raise RuntimeError('FlashAttention only supports Ampere GPUs or newer.')",
        # Forward runs, and backward does not.
        "q.register_hook(lambda grad: (_ for _ in ()).throw(RuntimeError('not built'))); return q * 1",
        "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2')",
    ],
)
def test_flash_attn_that_does_not_run_is_not_taken(
    install_flash: Callable[[str], None], phase: Phase, body: str, caplog: pytest.LogCaptureFixture
):
    install_flash(body)
    assert resolve_attention("auto", CUDA, torch.bfloat16) == CAUSAL_SDPA
    assert "attention is not flash-attn's: it is installed, but does not run on this GPU: " in caplog.text
    asked = change(phase, attention="flash_attention_2", precision="bf16")
    with pytest.raises(StageError, match=r"NVIDIA L4: .*set it to sdpa or auto, or build .*FLASH_ATTN_ARCHS") as caught:
        check_device(asked, CUDA)
    assert caught.value.reason is Reason.UNSUPPORTED_DEVICE
    # Nothing stands against what does not need it.
    check_device(change(phase, attention="auto", precision="bf16"), CUDA)
