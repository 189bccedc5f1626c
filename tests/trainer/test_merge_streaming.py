"""Passes that go through a model a block at a time: the same numbers as the whole model's, in bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from llava_trainer.merging.changes import read_adapter
from llava_trainer.merging.lanes import Batch, open_lanes
from llava_trainer.merging.reference import Reference, Streamed, build_reference
from llava_trainer.merging.served import build_served
from tests.trainer.checkpoints import build_llava, edit_weights, make_adapter, save_base
from tests.trainer.merges import merge_weights

IMAGE = 5
MODULES_BYTES = 60e6
"""What modules without weights and imports at the first pass take; measured."""


def make_batches() -> list[Batch]:
    """Two rows with an image each, of which one is padded; a text; and one with two images."""
    torch.manual_seed(3)
    ids = torch.randint(6, 64, (2, 24))
    ids[:, 4:8] = IMAGE
    padded = torch.ones_like(ids)
    padded[1, 17:] = 0
    text = torch.randint(6, 64, (1, 12))
    several = torch.randint(6, 64, (1, 20))
    several[:, 2:6] = several[:, 9:13] = IMAGE
    return [
        {"input_ids": ids, "attention_mask": padded, "pixel_values": torch.randn(2, 3, 28, 28)},
        {"input_ids": text, "attention_mask": torch.ones_like(text)},
        {"input_ids": several, "attention_mask": torch.ones_like(several), "pixel_values": torch.randn(2, 3, 28, 28)},
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    save_base(build_llava(), folder / "base", dtype=torch.bfloat16)
    make_adapter(build_llava(), folder / "adapter")
    (folder / "merged").mkdir()
    merge_weights(folder / "base", read_adapter(folder / "adapter"), folder / "merged", torch.bfloat16)
    (folder / "merged" / "config.json").write_bytes((folder / "base" / "config.json").read_bytes())
    return folder


def stream(streamed: Streamed, batches: list[Batch], positions: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
    """Logits of passes through one block after another; at no time do two blocks hold weights."""
    kept = positions or [torch.arange(batch["input_ids"].shape[1]) for batch in batches]
    with open_lanes(streamed.model, [block.module for block in streamed.blocks], batches, kept) as lanes:
        for block in streamed.blocks:
            assert not any(parameter.device.type == "cpu" for parameter in streamed.model.parameters())
            block.fill()
            lanes.run(block.module)
            block.empty()
        return lanes.logits


@torch.inference_mode()
def whole(model: nn.Module, batches: list[Batch]) -> list[torch.Tensor]:
    return [model(**batch, use_cache=False).logits for batch in batches]


def test_passes_block_by_block_are_the_whole_models(root: Path) -> None:
    """Of the base with its adapter unmerged, of the base alone, and of the folder as a server loads it."""
    base = LlavaForConditionalGeneration.from_pretrained(root / "base", dtype=torch.float32).eval()
    batches = make_batches()
    plain = stream(build_reference(Reference(base_dir=root / "base")), batches)
    assert all(torch.equal(a, b) for a, b in zip(plain, whole(base, batches), strict=True))
    adapted = stream(build_reference(Reference(base_dir=root / "base", adapter_dir=root / "adapter")), batches)
    tuned = PeftModel.from_pretrained(base, root / "adapter").float().eval()
    assert all(torch.equal(a, b) for a, b in zip(adapted, whole(tuned, batches), strict=True))
    served = stream(build_served(root / "merged"), batches)
    merged = AutoModelForImageTextToText.from_pretrained(root / "merged", dtype=torch.float32).eval()
    assert all(torch.equal(a, b) for a, b in zip(served, whole(merged, batches), strict=True))
    assert not torch.allclose(plain[0], adapted[0], atol=1e-2)


def test_positions_are_those_asked_for(root: Path) -> None:
    streamed, batches = build_reference(Reference(base_dir=root / "base")), make_batches()
    positions = [torch.tensor([0, 11, 16]), torch.tensor([11]), torch.tensor([3, 19])]
    every = stream(streamed, batches)
    some = stream(streamed, batches, positions)
    for kept, logits, all_logits in zip(positions, some, every, strict=True):
        torch.testing.assert_close(logits, all_logits[:, kept])


def test_tied_weights_of_head_and_embedding_are_read_twice(tmp_path: Path) -> None:
    llava = build_llava()
    llava.config.tie_word_embeddings = True
    llava.tie_weights()
    save_base_without_head(llava, tmp_path / "base")
    logits = stream(build_reference(Reference(base_dir=tmp_path / "base")), make_batches())
    assert all(torch.equal(a, b) for a, b in zip(logits, whole(llava, make_batches()), strict=True))


def save_base_without_head(llava: LlavaForConditionalGeneration, folder: Path) -> None:
    head = llava.lm_head.weight
    llava.lm_head.weight = nn.Parameter(head.detach().clone())
    save_base(llava, folder)
    edit_weights(folder / "model.safetensors", lambda weights: weights.pop("language_model.lm_head.weight"))
    llava.lm_head.weight = head


def test_what_a_pass_raises_is_raised_and_the_others_end(root: Path) -> None:
    streamed, batches = build_reference(Reference(base_dir=root / "base")), make_batches()
    wrong = {**batches[0], "pixel_values": batches[0]["pixel_values"][:1]}
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        stream(streamed, [batches[1], wrong])
    for block in streamed.blocks:
        block.empty()
    # Nothing is left of it.
    again = stream(streamed, batches)
    assert torch.equal(again[1], stream(build_reference(Reference(base_dir=root / "base")), batches)[1])


def test_passes_that_nobody_lets_go_on_end(root: Path) -> None:
    streamed = build_reference(Reference(base_dir=root / "base"))
    positions = [torch.tensor([0])] * 3
    with (
        pytest.raises(RuntimeError, match="enough"),
        open_lanes(streamed.model, [block.module for block in streamed.blocks], make_batches(), positions),
    ):
        raise RuntimeError("enough")


_PROVE_A_LARGE_MODEL = """
import sys
from pathlib import Path
import torch
from llava_trainer.host_memory import peak_resident_bytes, resident_bytes, return_freed_memory
from llava_trainer.merging.proof import prove_merge
from llava_trainer.merging.reference import Reference
root = Path(sys.argv[1])
torch.ones(64, 64) @ torch.ones(64, 64)
ids = torch.arange(6, 38)[None].clone()
ids[:, 4:8] = 5
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 28, 28)}
return_freed_memory()
before = resident_bytes()
prove_merge(Reference(base_dir=root / "base", adapter_dir=root / "adapter"), root / "merged", [batch])
print(peak_resident_bytes() - before)
"""


def test_memory_is_bounded_by_a_layer_not_by_the_model(tmp_path: Path) -> None:
    """A model of 12 layers of 26 MB in fp32: a process of its own proves its merge and says what it took at most."""
    llava = build_llava(hidden=512, intermediate=3584, layers=12)
    layer_bytes = 4 * sum(one.numel() for one in llava.model.language_model.layers[0].parameters())
    model_bytes = 4 * sum(one.numel() for one in llava.parameters())
    save_base(llava, tmp_path / "base", dtype=torch.bfloat16)
    make_adapter(llava, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merge_weights(tmp_path / "base", read_adapter(tmp_path / "adapter"), tmp_path / "merged", torch.bfloat16)
    (tmp_path / "merged" / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROVE_A_LARGE_MODEL, tmp_path],
        check=True, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert model_bytes > 300e6
    assert int(told.stdout.splitlines()[-1]) < 2.5 * layer_bytes + MODULES_BYTES
