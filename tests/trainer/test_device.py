"""Proves what is said of GPUs that cannot do what a run asks for. What a real GPU answers is for tests/gpu."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llava_trainer.model.flash import has_flash_attention
from llava_trainer.training.device import check_device, find_fault
from llava_trainer.training.phase import Phase, phase_of
from tests.trainer.trainings import configure

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
    fault = find_fault(replace(phase, **changes), capability, built_for=WHEEL, has_flash=has_flash)
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
    assert find_fault(replace(phase, **changes), capability, built_for=built_for, has_flash=True) is None


def test_a_cpu_can_do_everything(phase: Phase):
    check_device(replace(phase, attention="flash_attention_2"), torch.device("cpu"))
