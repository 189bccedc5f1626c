"""The vision tower's configuration: read from its own folder, else told by its weights, and held against its name.

A checkpoint of the original code names its tower (``mm_vision_tower``) but keeps no configuration of it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError
from llava_trainer.importing.names import TOWER

_CLIP_HEAD_WIDTH = 64
"""Width of an attention head in OpenAI's CLIP towers that LLaVA is trained with (ViT-B and ViT-L)."""
_NAMED = re.compile(r"clip-vit-(?:base|large)-patch(\d+)(?:-(\d+))?/?$")
_DEFAULT_PX = 224
"""Image size of OpenAI's CLIP models whose name tells none."""
_KEYS = (
    "hidden_act", "hidden_size", "image_size", "intermediate_size", "layer_norm_eps", "num_attention_heads",
    "num_channels", "num_hidden_layers", "patch_size", "projection_dim",
)  # fmt: skip
# How OpenAI's models are built, where no configuration tells it.
_OPENAI: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3, "projection_dim": 768}
# What transformers takes where a CLIP configuration leaves a key out.
_DEFAULTS = _OPENAI | {
    "hidden_size": 768, "image_size": 224, "intermediate_size": 3072, "num_attention_heads": 12,
    "num_hidden_layers": 12, "patch_size": 32, "projection_dim": 512,
}  # fmt: skip
_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A vision tower's configuration, and how images are made for it."""

    settings: dict[str, Any]
    """``vision_config`` of the hub's layout."""
    image_settings: dict[str, Any]
    """Mean, deviation and resampling of its image processor; empty for CLIP's own."""

    @property
    def image_px(self) -> int:
        """Width and height of the images that it sees."""
        return int(self.settings["image_size"])


def describe_tower(shapes: Mapping[str, tuple[int, ...]], folder: Path | None, name: str | None) -> Tower:
    """Describe the tower whose weights have these ``shapes``.

    Args:
        shapes: of the model's tensors, by hub name.
        folder: the tower's own folder, if there is one.
        name: what the checkpoint calls its tower.

    Raises:
        StageError: InvalidModel; weights, configuration and name contradict each other, or it is no CLIP.
    """
    measured = _measure(shapes)
    if folder is None:
        settings = measured | _OPENAI | {"num_attention_heads": max(1, measured["hidden_size"] // _CLIP_HEAD_WIDTH)}
        image_settings: dict[str, Any] = {}
    else:
        settings = _read_config(folder / "config.json")
        _compare(settings, measured, folder)
        image_settings = _read_image_settings(folder, settings["image_size"])
    if name is not None:
        _check_name(name, settings)
    return Tower(settings={"model_type": "clip_vision_model", **settings}, image_settings=image_settings)


def _measure(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    patches = shapes.get(f"{TOWER}embeddings.patch_embedding.weight")
    positions = shapes.get(f"{TOWER}embeddings.position_embedding.weight")
    first = shapes.get(f"{TOWER}encoder.layers.0.mlp.fc1.weight")
    if patches is None or positions is None or first is None:
        raise _invalid(
            "the checkpoint does not carry its vision tower: name the CLIP model that it was trained with in "
            "spec.model.visionTower"
        )
    layers = {
        name.removeprefix(f"{TOWER}encoder.layers.").split(".")[0] for name in shapes if ".encoder.layers." in name
    }
    return {
        "hidden_size": patches[0],
        "patch_size": patches[2],
        "image_size": isqrt(positions[0] - 1) * patches[2],
        "intermediate_size": first[0],
        "num_hidden_layers": len(layers),
    }


def _read_config(path: Path) -> dict[str, Any]:
    settings = read_settings(path)
    model_type = settings.get("model_type")
    if model_type in ("clip", "llava") and isinstance(settings.get("vision_config"), dict):
        settings = settings["vision_config"]
    elif model_type != "clip_vision_model":
        raise _invalid(
            f"{path}: model_type is {model_type!r}, not 'clip' or 'clip_vision_model': LLaVA v1.5's tower is CLIP"
        )
    return {key: settings.get(key, _DEFAULTS[key]) for key in _KEYS}


def _compare(settings: Mapping[str, Any], measured: Mapping[str, int], folder: Path) -> None:
    for key, value in measured.items():
        if settings[key] != value:
            raise _invalid(
                f"{folder / 'config.json'}: {key} is {settings[key]}, but the vision tower's weights have {value}: "
                "name in spec.model.visionTower the tower that the checkpoint was trained with"
            )


def _check_name(name: str, settings: Mapping[str, Any]) -> None:
    named = _NAMED.search(name)
    if named is None:
        return
    patch_px, image_px = int(named[1]), int(named[2] or _DEFAULT_PX)
    if (patch_px, image_px) != (settings["patch_size"], settings["image_size"]):
        raise _invalid(
            f"config.json's mm_vision_tower names {name}, which sees {image_px} px in patches of {patch_px}, but the "
            f"vision tower's weights see {settings['image_size']} px in patches of {settings['patch_size']}: correct "
            "mm_vision_tower, or name the right tower in spec.model.visionTower"
        )


def _read_image_settings(folder: Path, image_px: int) -> dict[str, Any]:
    path = folder / _PREPROCESSOR
    if not path.is_file():
        return {}
    settings = read_settings(path)
    crop = settings.get("crop_size", image_px)
    height = crop.get("height") if isinstance(crop, dict) else crop
    if height != image_px:
        raise _invalid(
            f"{path}: crop_size is {crop}, but the tower sees {image_px} px: take both from the same CLIP model"
        )
    return {key: settings[key] for key in ("image_mean", "image_std", "resample") if key in settings}


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
