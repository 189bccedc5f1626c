"""Which files of a model are needed: configuration, tokenizer, weights. Nothing that is code, and no format twice."""

import json
import re
from collections.abc import Collection
from pathlib import Path

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "adapter_config.json",
)
"""What stands beside weights. Not among them: training_args.bin, a pickle of arbitrary objects."""

SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
PICKLES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
PARTS = ("adapter_model", "non_lora_trainables", "mm_projector", "projector")
"""Weights of a part of a model, each as .safetensors or .bin."""

_SHARD = re.compile(r"(?:model-\d{5}-of-\d{5}\.safetensors|pytorch_model-\d{5}-of-\d{5}\.bin)")


def choose_model_files(names: Collection[str]) -> list[str]:
    """The files of a model's folder that are needed, of those that are there; safetensors where there are both.

    Args:
        names: relative to the folder. Only the folder itself is looked at: what lies deeper is another model's.
    """
    whole = {name for name in names if name in SAFETENSORS + PICKLES or _SHARD.fullmatch(name)}
    if any(name.endswith(".safetensors") for name in whole):
        whole = {name for name in whole if ".bin" not in name}
    parts = {f"{part}.safetensors" for part in PARTS} & set(names)
    parts |= {f"{part}.bin" for part in PARTS if f"{part}.safetensors" not in parts} & set(names)
    return sorted(whole | parts | (set(SMALL_FILES) & set(names)))


def is_model_file(name: str) -> bool:
    """Whether ``choose_model_files`` could choose it."""
    return bool(choose_model_files([name]))


def shards_of(index: Path) -> list[str]:
    """The files that an index of weights names; those that are no shards' names are left out.

    What is wrong with an index that cannot be read, the reading of the model tells.
    """
    try:
        places = json.loads(index.read_bytes())["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
    names = {name for name in places if isinstance(name, str)}
    return sorted(name for name in names if is_model_file(name))
