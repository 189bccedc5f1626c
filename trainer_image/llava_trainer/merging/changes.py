"""What training changes in a base's tensors, whichever method it was: by a product of two matrices, or whole.

Whatever adapter_config.json asks for beyond plain LoRA is refused by name, never passed over.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.model.layout import LANGUAGE_MODEL, PROJECTOR, hub_name, module_name
from llava_trainer.tensors.lora import LORA_A, LORA_B, LoraError, LoraPair, find_pairs
from llava_trainer.tensors.stored import StoredTensor, find_stored

_PREFIX = "base_model.model."

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
    "init_lora_weights": (True, False, "gaussian"),
}


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What was trained, by hub name of the base's tensors."""

    what: str
    """What holds them, for messages: ``the adapter``."""
    pairs: Mapping[str, LoraPair] = field(default_factory=dict)
    """Tensors that get an update."""
    replaced: Mapping[str, StoredTensor]
    """Tensors that were trained whole."""
    targets: str | tuple[str, ...] = ()
    """What must have an update, as PEFT's ``target_modules``: one pattern for the whole module name, or endings."""
    whole: tuple[str, ...]
    """What must have been trained whole: beginnings of hub names."""

    def must_update(self, hub: str) -> bool:
        """Whether the tensor with this hub name has to have an update."""
        if not hub.endswith(".weight"):
            return False
        module = module_name(hub).removesuffix(".weight")
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, module) is not None
        return any(module == ending or module.endswith(f".{ending}") for ending in self.targets)

    def must_replace(self, hub: str) -> bool:
        """Whether the tensor with this hub name has to have been trained whole."""
        return hub.startswith(self.whole)


def read_changes(config: RunConfig) -> Changes:
    """What training changes in the run's base.

    Raises:
        StageError: MergeMismatch; what it left is incomplete, or more than merging understands. InvalidModel; a file of
            it is damaged.
    """
    volume = config.volume
    match config.training.method:
        case "full":
            return Changes(
                what="the folder of trained weights",
                replaced=_list_tensors(volume.weights_dir),
                whole=(f"{LANGUAGE_MODEL}.", f"{PROJECTOR}."),
            )
        case "none":
            return Changes(
                what="the aligned projector",
                replaced=_list_tensors(volume.projector_dir),
                whole=(f"{PROJECTOR}.",),
            )
        case _:
            return read_adapter(volume.adapter_dir)


def read_adapter(folder: Path) -> Changes:
    """Read what the adapter in ``folder`` does.

    Raises:
        StageError: it is incomplete, holds tensors that nothing uses, or asks for more than plain LoRA.
    """
    file = folder / "adapter_model.safetensors"
    config_file = folder / "adapter_config.json"
    for path in (config_file, file):
        if not path.is_file():
            raise _mismatch(f"{path} is missing: training did not leave a whole adapter")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    _refuse_unknown_settings(config)
    stored = {tensor.name: tensor for tensor in find_stored(file)}
    targets = config["target_modules"]
    return Changes(
        what="the adapter",
        pairs=_find_pairs(stored, config["r"], config["lora_alpha"] / config["r"]),
        replaced=_find_replaced(stored, tuple(config.get("modules_to_save") or ())),
        targets=targets if isinstance(targets, str) else tuple(targets),
        whole=(f"{PROJECTOR}.",),
    )


def _refuse_unknown_settings(config: dict[str, Any]) -> None:
    for name, value in config.items():
        if name in _PLAIN:
            # "is"-like comparison by type too: 1 == True would let a number pass for a switch.
            if not any(type(value) is type(plain) and value == plain for plain in _PLAIN[name]):
                raise _mismatch(f"adapter_config.json: {name} is {value!r}, and only {_PLAIN[name]} can be merged")
        elif name not in _UNDERSTOOD and value:
            raise _mismatch(f"adapter_config.json: {name} is {value!r}, which merging does not know how to apply")


def _find_pairs(stored: Mapping[str, StoredTensor], rank: int, scale: float) -> dict[str, LoraPair]:
    try:
        pairs = find_pairs(stored, rank=rank, scale=scale)
    except LoraError as error:
        raise _mismatch(str(error)) from error
    if not pairs:
        raise _mismatch("the adapter holds no LoRA matrices")
    return {hub_name(f"{_bare(layer)}.weight"): pair for layer, pair in pairs.items()}


def _find_replaced(stored: Mapping[str, StoredTensor], modules: tuple[str, ...]) -> dict[str, StoredTensor]:
    replaced = {}
    for name in stored:
        if name.endswith((LORA_A, LORA_B)):
            continue
        if not any(f".{module}." in name for module in modules):
            raise _mismatch(f"the adapter holds {name}, which belongs to no module of modules_to_save {list(modules)}")
        replaced[hub_name(_bare(name))] = stored[name]
    if not any(name.startswith(f"{PROJECTOR}.") for name in replaced):
        raise _mismatch(f"the adapter holds no {PROJECTOR} tensor: the trained projector was not saved")
    return replaced


def _bare(name: str) -> str:
    if not name.startswith(_PREFIX):
        raise _mismatch(f"the adapter holds {name}, whose name does not begin with {_PREFIX}")
    return name.removeprefix(_PREFIX)


def _list_tensors(folder: Path) -> dict[str, StoredTensor]:
    found = {tensor.name: tensor for file in sorted(folder.glob("*.safetensors")) for tensor in find_stored(file)}
    if not found:
        raise StageError(Reason.MERGE_MISMATCH, f"{folder} holds no tensor: training did not leave what it trained")
    return found


def _mismatch(message: str) -> StageError:
    return StageError(Reason.MERGE_MISMATCH, message)
