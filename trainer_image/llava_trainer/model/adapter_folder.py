"""An adapter's folder in PEFT's layout, read from headers and settings alone: which of a base's tensors it changes.

Whatever adapter_config.json asks for beyond plain LoRA is refused by name, never passed over.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_api.text import show
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError
from llava_trainer.model.layout import hub_name, module_name
from llava_trainer.tensors.lora import LORA_A, LORA_B, LoraError, LoraPair, find_pairs, scale_of
from llava_trainer.tensors.stored import StoredTensor, find_stored

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LARGEST = 1 << 16
"""Beyond any rank and alpha in use."""

# Settings that say nothing about the merged weights, or that are read below.
_UNDERSTOOD = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_alpha", "lora_dropout", "megatron_core",
        "modules_to_save", "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type",
        "layers_pattern",
    }
)  # fmt: skip
# Settings whose harmless values are not simply empty: these initialisations leave the base's weights alone.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (True, False),
    "init_lora_weights": (True, False, "gaussian"),
}


class AdapterError(ValueError):
    """It is incomplete, or more than plain LoRA; the message says what."""


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """What an adapter does, by hub name of the base's tensors."""

    rank: int
    alpha: float
    is_rank_stabilised: bool
    """Whether updates are scaled by alpha / sqrt(rank)."""
    pairs: Mapping[str, LoraPair]
    """Tensors that get an update."""
    replaced: Mapping[str, StoredTensor]
    """Tensors that were trained whole beside it (``modules_to_save``)."""
    targets: str | tuple[str, ...]
    """PEFT's ``target_modules``: one pattern for the whole module name, or endings."""


def read_adapter_folder(folder: Path) -> StoredAdapter:
    """Read what the adapter in ``folder`` does.

    Raises:
        AdapterError: it is incomplete, holds tensors that nothing uses, or asks for more than plain LoRA.
        StageError: InvalidModel; a file of it is damaged.
    """
    file, config_file = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    for path in (config_file, file):
        if not path.is_file():
            raise AdapterError(f"{path} is missing")
    config = read_settings(config_file)
    _refuse_unknown_settings(config)
    stored = {tensor.name: tensor for tensor in find_stored(file)}
    rank, alpha = _read_number(config, "r"), _read_number(config, "lora_alpha")
    return StoredAdapter(
        rank=int(rank),
        alpha=alpha,
        is_rank_stabilised=bool(config.get("use_rslora")),
        pairs=_find_pairs(stored, int(rank), scale_of(config)),
        replaced=_find_replaced(stored, _read_names(config, "modules_to_save")),
        targets=_read_targets(config),
    )


def is_target(targets: str | tuple[str, ...], hub: str) -> bool:
    """Whether PEFT's ``target_modules`` name the module of the tensor with this hub name."""
    if not hub.endswith(".weight"):
        return False
    module = module_name(hub).removesuffix(".weight")
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == ending or module.endswith(f".{ending}") for ending in targets)


def stored_name(hub: str) -> str:
    """What PEFT calls a tensor that was trained whole, by its hub name, in the adapters of transformers 5."""
    return _PREFIX + module_name(hub)


def stored_pair_names(hub: str) -> tuple[str, str]:
    """What PEFT calls the matrices A and B of the tensor with this hub name."""
    layer = stored_name(hub).removesuffix(".weight")
    return layer + LORA_A, layer + LORA_B


def _refuse_unknown_settings(config: dict[str, Any]) -> None:
    for name, value in config.items():
        if name in _PLAIN:
            # "is"-like comparison by type too: 1 == True would let a number pass for a switch.
            if not any(type(value) is type(plain) and value == plain for plain in _PLAIN[name]):
                raise AdapterError(f"{CONFIG_FILE}: {name} is {value!r:.100}, and only {_PLAIN[name]} can be merged")
        elif name not in _UNDERSTOOD and value:
            raise AdapterError(
                f"{CONFIG_FILE}: {show(name, max_chars=60)} is {value!r:.100}, which merging does not know how to apply"
            )


def _read_number(config: dict[str, Any], name: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
        raise AdapterError(f"{CONFIG_FILE}: {name} is {value!r:.100}, not a number greater than 0")
    if name == "r" and value != int(value):
        raise AdapterError(f"{CONFIG_FILE}: r is {value!r:.100}, not a whole number")
    return value


def _read_names(config: dict[str, Any], name: str) -> tuple[str, ...]:
    value = config.get(name) or ()
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise AdapterError(f"{CONFIG_FILE}: {name} is {value!r:.100}, not a list of names")
    return tuple(value)


def _read_targets(config: dict[str, Any]) -> str | tuple[str, ...]:
    value = config.get("target_modules")
    return value if isinstance(value, str) else _read_names(config, "target_modules")


def _find_pairs(stored: Mapping[str, StoredTensor], rank: int, scale: float) -> dict[str, LoraPair]:
    try:
        pairs = find_pairs(stored, rank=rank, scale=scale)
    except LoraError as error:
        raise AdapterError(str(error)) from error
    if not pairs:
        raise AdapterError("the adapter holds no LoRA matrices")
    return {_hub_name(f"{layer}.weight"): pair for layer, pair in pairs.items()}


def _find_replaced(stored: Mapping[str, StoredTensor], modules: tuple[str, ...]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name in stored:
        if name.endswith((LORA_A, LORA_B)):
            continue
        if not any(f".{module}." in name for module in modules):
            raise AdapterError(
                f"the adapter holds {name}, which belongs to no module of modules_to_save {list(modules)}"
            )
        found[_hub_name(name)] = stored[name]
    return found


def _hub_name(name: str) -> str:
    if not name.startswith(_PREFIX):
        raise AdapterError(f"the adapter holds {name}, whose name does not begin with {_PREFIX}")
    try:
        return hub_name(name.removeprefix(_PREFIX))
    except StageError as error:
        raise AdapterError(f"the adapter holds {name}, which is no tensor of a LLaVA v1.5 on transformers") from error
