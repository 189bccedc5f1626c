"""LoRA folders of the original code: an adapter of PEFT's, and what was trained whole beside it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError
from llava_trainer.importing.folders import read_all
from llava_trainer.importing.names import name_original, strip_peft
from llava_trainer.importing.parts import ADAPTER_CONFIG, NON_LORA_PICKLE
from llava_trainer.importing.weights import Recipe, Recipes, replace_all
from llava_trainer.weights.stored import StoredTensor

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Settings with which the update is not plainly B A x alpha / rank.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": (None, "none"), "use_dora": (None, False), "use_rslora": (None, False),
    "fan_in_fan_out": (None, False), "modules_to_save": (None, []), "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
}  # fmt: skip


def apply_lora(base: Recipes, folder: Path) -> Recipes:
    """Merge the adapter in ``folder`` into ``base`` and put in what was trained whole (the projector).

    Raises:
        StageError: InvalidModel; the folder is incomplete, or does not belong to this base.
    """
    settings = _read_settings(folder / ADAPTER_CONFIG)
    scale = settings["lora_alpha"] / settings["r"]
    whole = _read_whole(folder)
    merged = replace_all(base, whole, "the folder")
    adapter = read_all([_weights_file(folder)])
    unused = set(adapter)
    for name, first in adapter.items():
        if not name.endswith(_A):
            continue
        second = adapter.get(name.removesuffix(_A) + _B)
        target = strip_peft(name).removesuffix(_A) + ".weight"
        hub = next(iter(name_original({target: first})))
        if second is None or hub not in base:
            missing = "its lora_B is missing" if second is None else f"the base has no {target}"
            raise _invalid(f"{first.file}: {name} cannot be applied: {missing}")
        merged[hub] = replace(base[hub], make=_update(base[hub], first, second, scale))
        _check_shapes(base[hub], first, second)
        unused -= {name, second.name}
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


def _check_shapes(base: Recipe, first: StoredTensor, second: StoredTensor) -> None:
    if (second.shape[0], first.shape[1]) != base.shape or first.shape[0] != second.shape[1]:
        raise _invalid(
            f"{first.file}: {first.name} {first.shape} and its lora_B {second.shape} do not fit {base.name} "
            f"{base.shape}: the adapter was trained on another base"
        )


def _update(base: Recipe, first: StoredTensor, second: StoredTensor, scale: float) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        update = (second.read().float() @ first.read().float()).mul_(scale)
        return base.make().to(torch.float32, copy=True).add_(update).to(base.dtype)

    return make


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
