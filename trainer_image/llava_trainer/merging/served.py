"""The merged folder as a server loads it: by plain Auto classes, which name what is missing or too much."""

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.blocks import build_empty, cut_into_blocks, tied_names
from llava_trainer.merging.recipes import find_tensors
from llava_trainer.merging.reference import Streamed
from llava_trainer.model.layout import is_derived
from llava_trainer.model.loading import AS_DATA, PLAIN_ATTENTION
from llava_trainer.tensors.stored import StoredTensor


def build_served(merged_dir: Path) -> Streamed:
    """Have transformers load the folder without its weights, and build what it made of the configuration.

    Raises:
        StageError: MergeMismatch; it finds another class, or tensors are missing, unexpected or of another shape.
    """
    loaded, found = AutoModelForImageTextToText.from_pretrained(
        merged_dir, dtype=torch.float32, attn_implementation=PLAIN_ATTENTION, device_map="meta",
        ignore_mismatched_sizes=True, output_loading_info=True, **AS_DATA,
    )  # fmt: skip
    trouble = {
        "missing": sorted(found["missing_keys"]),
        "unexpected": sorted(name for name in found["unexpected_keys"] if not is_derived(name)),
        "wrongly shaped": sorted(str(entry[0]) for entry in found["mismatched_keys"]),
    }
    for kind, names in trouble.items():
        if names:
            raise _mismatch(f"loading {merged_dir} as a server does finds {len(names)} {kind} tensors, like {names[0]}")
    if type(loaded) is not LlavaForConditionalGeneration:
        raise _mismatch(f"loading {merged_dir} as a server does makes a {type(loaded).__name__}")
    # Another one: this one's buffers, which are computed from the configuration, have no values either.
    llava = build_empty(loaded.config)
    tied = tied_names(llava)
    stored = find_tensors(merged_dir)

    def find(name: str, hub: str | None) -> StoredTensor:
        assert hub is not None, name
        return stored[hub] if hub in stored else stored[tied[hub]]

    return Streamed(model=llava, blocks=cut_into_blocks(llava, llava, find), tied=tied)


def _mismatch(message: str) -> StageError:
    return StageError(Reason.MERGE_MISMATCH, message)
