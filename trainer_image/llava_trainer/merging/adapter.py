"""A LoRA adapter in PEFT's layout, as far as merging must understand it.

PEFT is not asked here: it is the oracle that the merged model is proven against (see ``proof``). Whatever
adapter_config.json asks for beyond plain LoRA is refused by name, never passed over.
"""

import json
from pathlib import Path
from typing import Any

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import Changes, LoraPair
from llava_trainer.model.layout import PROJECTOR, hub_name
from llava_trainer.weights.stored import StoredTensor, find_stored

Stored = dict[str, StoredTensor]

_PREFIX = "base_model.model."
_LORA_A = ".lora_A.weight"
_LORA_B = ".lora_B.weight"

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
        pairs=_pair_up(stored, config["r"], config["lora_alpha"] / config["r"]),
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


def _pair_up(stored: Stored, rank: int, scale: float) -> dict[str, LoraPair]:
    pairs = {}
    for name in stored:
        if not name.endswith(_LORA_A):
            continue
        other = name.removesuffix(_LORA_A) + _LORA_B
        if other not in stored:
            raise _mismatch(f"the adapter holds {name} without {other}")
        if stored[name].shape[0] != rank or stored[other].shape[1] != rank:
            raise _mismatch(
                f"{name} is {stored[name].shape} and {other} is {stored[other].shape}: B must have as many columns "
                f"and A as many rows as adapter_config.json's r, which is {rank}"
            )
        pairs[hub_name(_bare(name).removesuffix(_LORA_A) + ".weight")] = LoraPair(
            a=stored[name], b=stored[other], scale=scale
        )
    lone = [name for name in stored if name.endswith(_LORA_B) and name.removesuffix(_LORA_B) + _LORA_A not in stored]
    if lone:
        raise _mismatch(f"the adapter holds {lone[0]} without its lora_A")
    if not pairs:
        raise _mismatch("the adapter holds no LoRA matrices")
    return pairs


def _find_replaced(stored: Stored, modules: tuple[str, ...]) -> Stored:
    replaced = {}
    for name in stored:
        if name.endswith((_LORA_A, _LORA_B)):
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


def _mismatch(message: str) -> StageError:
    return StageError(Reason.MERGE_MISMATCH, message)
