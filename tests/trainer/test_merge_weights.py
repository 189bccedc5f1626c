"""Merging bit for bit against PEFT, from and into every layout."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.adapter import read_adapter
from llava_trainer.merging.weights import merge_weights
from tests.trainer.checkpoints import LAYOUTS, Layout, build_llava, edit_weights, make_adapter, rename, save_base

# PEFT asks transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    make_adapter(build_llava(), folder)
    return folder


def merge(base: Path, adapter: Path, out: Path, dtype: torch.dtype = torch.bfloat16, **options) -> Path:
    out.mkdir()
    merge_weights(base, read_adapter(adapter), out, dtype, **options)
    return out


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def merged_by_peft(base_dtype: torch.dtype, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What PEFT makes of the base in ``dtype`` (its in-place sum is rounded to it once), by hub name."""
    model = build_llava().to(base_dtype).to(torch.promote_types(base_dtype, dtype))
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {rename(name, "hub"): tensor.to(dtype) for name, tensor in merged.state_dict().items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_layout_merges_to_what_peft_merges(
    tmp_path: Path, adapter_dir: Path, layout: Layout, num_shards: int
) -> None:
    save_base(build_llava(), tmp_path / "base", layout=layout, dtype=torch.bfloat16, num_shards=num_shards)
    ours = load_all(merge(tmp_path / "base", adapter_dir, tmp_path / "out"))
    theirs = merged_by_peft(torch.bfloat16, adapter_dir, torch.bfloat16)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("base_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_rounded_once_and_equals_peft(
    tmp_path: Path, adapter_dir: Path, base_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    save_base(build_llava(), tmp_path / "base", dtype=base_dtype)
    ours = load_all(merge(tmp_path / "base", adapter_dir, tmp_path / "out", dtype))
    theirs = merged_by_peft(base_dtype, adapter_dir, dtype)
    assert [name for name in theirs if ours[name].dtype != dtype or not torch.equal(ours[name], theirs[name])] == []
