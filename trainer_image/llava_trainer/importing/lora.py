"""LoRA folders of the original code: an adapter of PEFT's, and what was trained whole beside it."""

from pathlib import Path
from typing import Any

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError
from llava_trainer.importing.folders import read_all
from llava_trainer.importing.names import name_original, strip_peft
from llava_trainer.importing.parts import ADAPTER_CONFIG, NON_LORA_PICKLE
from llava_trainer.importing.recipes import Recipes, replace_all
from llava_trainer.tensors.lora import LORA_A, LORA_B, LoraError, find_pairs, scale_of, updated
from llava_trainer.tensors.stored import StoredTensor

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Settings with which the update is not plainly B A times a scale.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": (None, "none"), "use_dora": (None, False), "use_rslora": (None, False, True),
    "fan_in_fan_out": (None, False), "modules_to_save": (None, []), "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}  # fmt: skip


def apply_lora(base: Recipes, folder: Path) -> Recipes:
    """Merge the adapter in ``folder`` into ``base`` and put in what was trained whole (the projector).

    Raises:
        StageError: InvalidModel; the folder is incomplete, or does not belong to this base.
    """
    settings = _read_settings(folder / ADAPTER_CONFIG)
    whole = _read_whole(folder)
    merged = replace_all(base, whole, "the folder")
    file = _weights_file(folder)
    adapter = read_all([file])
    try:
        pairs = find_pairs(adapter, rank=settings["r"], scale=scale_of(settings))
        for layer, pair in pairs.items():
            target = f"{strip_peft(layer)}.weight"
            hub = next(iter(name_original({target: pair.a})))
            if hub not in base:
                raise _invalid(f"{file}: {layer} cannot be applied: the base has no {target}")
            merged[hub] = updated(base[hub], pair, base[hub].dtype)
    except LoraError as error:
        raise _invalid(f"{file}: {error}") from error
    unused = adapter.keys() - {layer + matrix for layer in pairs for matrix in (LORA_A, LORA_B)}
    if unused:
        raise _invalid(f"{folder}: {min(unused)} of the adapter belongs to nothing")
    return merged


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_settings(path)
    for key, allowed in _PLAIN.items():
        if settings.get(key) not in allowed:
            raise _invalid(f"{path}: {key} is {settings.get(key)!r}: only plain LoRA is merged")
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), int | float) or settings[key] <= 0:
            raise _invalid(f"{path}: {key} is {settings.get(key)!r}, not a number greater than 0")
    return settings


def _weights_file(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise _invalid(f"{folder} holds neither {' nor '.join(_WEIGHTS)}")


def _read_whole(folder: Path) -> dict[str, StoredTensor]:
    file = folder / NON_LORA_PICKLE
    if not file.is_file():
        raise _invalid(f"{file} does not exist: without it the projector that belongs to the adapter is missing")
    return name_original({strip_peft(name): tensor for name, tensor in read_all([file]).items()})


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
