"""What training changes in a base's tensors, whichever method it was: by a product of two matrices, or whole.

Whatever adapter_config.json asks for beyond plain LoRA is refused by name, never passed over.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.data.model_config import load_config
from llava_trainer.errors import StageError
from llava_trainer.model.layout import PROJECTOR, hub_name, module_name
from llava_trainer.model.learning import trained_whole
from llava_trainer.tensors.lora import LORA_A, LORA_B, LoraError, LoraPair, find_pairs, scale_of
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
    "use_rslora": (True, False),
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
    volume, learned = config.volume, trained_whole(config.training, load_config(config.model_dir))
    projector_dir = kept_projector_dir(config)
    aligned = _list_tensors(projector_dir) if projector_dir else {}
    kept = (f"{PROJECTOR}.",) if projector_dir else ()
    match config.training.method:
        case "full":
            replaced = _list_tensors(volume.weights_dir)
            made = Changes(what="the folder of trained weights", replaced=replaced, whole=learned)
        case "none":
            made = Changes(what="the aligned projector", replaced={}, whole=learned)
        case _:
            made = read_adapter(volume.adapter_dir, learned)
    return replace(made, replaced={**aligned, **made.replaced}, whole=kept + made.whole)


def kept_projector_dir(config: RunConfig) -> Path | None:
    """Folder of the projector that alignment has made and nothing has trained since; None where there is none."""
    training = config.training
    is_kept = training.method == "none" or (config.alignment is not None and training.projector == "frozen")
    return config.volume.projector_dir if is_kept else None


def read_adapter(folder: Path, learned: tuple[str, ...] = (f"{PROJECTOR}.",)) -> Changes:
    """Read what the adapter in ``folder`` does.

    Args:
        folder: of the adapter.
        learned: beginnings of the hub names of what was trained whole beside it.

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
        pairs=_find_pairs(stored, config["r"], scale_of(config)),
        replaced=_find_replaced(stored, tuple(config.get("modules_to_save") or ()), learned),
        targets=targets if isinstance(targets, str) else tuple(targets),
        whole=learned,
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


def _find_replaced(
    stored: Mapping[str, StoredTensor], modules: tuple[str, ...], learned: tuple[str, ...]
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name in stored:
        if name.endswith((LORA_A, LORA_B)):
            continue
        if not any(f".{module}." in name for module in modules):
            raise _mismatch(f"the adapter holds {name}, which belongs to no module of modules_to_save {list(modules)}")
        found[hub_name(_bare(name))] = stored[name]
    stray = sorted(name for name in found if not name.startswith(learned))
    if stray:
        raise _mismatch(f"the adapter holds {stray[0]}, which this run has not trained")
    if f"{PROJECTOR}." in learned and not any(name.startswith(f"{PROJECTOR}.") for name in found):
        raise _mismatch(f"the adapter holds no {PROJECTOR} tensor: the trained projector was not saved")
    return found


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
