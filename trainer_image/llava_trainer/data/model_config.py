"""What a model's JSON files say: read within bounds, config.json checked, names of code passed over.

A checkpoint's files may name code beside them or on the hub (``auto_map``), or any class of transformers, to be loaded
by. The Auto classes follow such names, and ask on stdin whether to run the code. Here, as everywhere in the trainer,
a model is loaded by transformers' own LLaVA classes, whatever a file says.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlavaConfig

from llava_api.failures import Reason
from llava_trainer.errors import StageError

NO_CODE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How every part of a model is loaded: from its folder, by no code of its own."""
CODE_KEY = "auto_map"
"""Where a file names code."""
_CHOOSES_WEIGHTS = ("quantization_config", "transformers_weights")
"""Keys of config.json that have transformers read other weights than those that are checked, or read them otherwise."""
_MAX_SETTINGS_BYTES = 128 * 2**20
"""The largest vocabularies there are take a quarter of it."""


def load_config(model_dir: Path) -> LlavaConfig:
    """Read ``config.json`` and check that it is a LLaVA of CLIP and Llama.

    Raises:
        StageError: InvalidModel, naming the key and its value.
    """
    path = model_dir / "config.json"
    settings = read_settings(path)
    wanted = (("model_type", "llava"), ("vision_config.model_type", "clip_vision_model"),
              ("text_config.model_type", "llama"))  # fmt: skip
    for key, value in wanted:
        found = _look_up(settings, key)
        if found != value:
            fix = "spec.model.source must be a LLaVA v1.5 checkpoint in the hub's layout"
            if str(found).startswith("llava_"):
                fix += "; the layout of the original code is another one, and prepare converts it"
            raise _invalid(f"{path}: {key} is {found!r}, not {value!r}: {fix}")
    for part in ("", "text_config.", "vision_config."):
        for key in _CHOOSES_WEIGHTS:
            if (found := _look_up(settings, part + key)) is not None:
                raise _invalid(
                    f"{path}: {part}{key} is {found!r:.100}: take a checkpoint whose weights are neither quantised nor "
                    "under names of their own"
                )
    try:
        config = LlavaConfig.from_pretrained(model_dir, **NO_CODE)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, StrictDataclassError) as error:
        raise _invalid(f"{path} cannot be used: {error}") from error
    for key in ("image_size", "patch_size"):
        value = getattr(config.vision_config, key)
        if not isinstance(value, int) or value < 1:
            raise _invalid(f"{path}: vision_config.{key} is {value!r}, not a number of pixels")
    if config.vision_feature_select_strategy not in ("default", "full"):
        raise _invalid(f"{path}: vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, "
                       "not 'default' or 'full'")  # fmt: skip
    _check_layers(config, path)
    return config


def _check_layers(config: LlavaConfig, path: Path) -> None:
    layers = config.vision_feature_layer
    depth = config.vision_config.num_hidden_layers
    chosen = layers if isinstance(layers, list | tuple) else [layers]
    if not chosen or any(type(one) is not int or not -depth - 1 <= one <= depth for one in chosen):
        raise _invalid(
            f"{path}: vision_feature_layer is {layers!r}, but the vision tower has hidden states 0 to {depth} (-1 is "
            "the last)"
        )


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object that belongs to a model.

    Raises:
        StageError: InvalidModel; the file is missing, too large or no JSON object.
    """
    try:
        if (size := path.stat().st_size) > _MAX_SETTINGS_BYTES:
            raise _invalid(f"{path} has {size:,} bytes, more than the {_MAX_SETTINGS_BYTES:,} that are read")
        settings = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise _invalid(f"{path} does not exist: spec.model.source must be the checkpoint's own folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _invalid(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise _invalid(f"{path} holds no JSON object")
    return settings


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Take whatever a library raises over a file of a model for the file's fault.

    Raises:
        StageError: InvalidModel, naming the file.
    """
    try:
        yield
    except Exception as error:
        raise _invalid(f"{path} cannot be used: {error}") from error
    except BaseException as error:
        # What is written in Rust panics over some files, which is no Exception and would end the stage without a word.
        if type(error).__name__ != "PanicException":
            raise
        raise _invalid(f"{path} cannot be used: {error}") from error


def without_code(settings: Any) -> Any:
    """``settings`` of a model without the names of code in them, at any depth."""
    if isinstance(settings, list):
        return [without_code(item) for item in settings]
    if isinstance(settings, dict):
        return {key: without_code(value) for key, value in settings.items() if key != CODE_KEY}
    return settings


def _look_up(settings: dict[str, Any], key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
