"""A projector that another run or the original code left by itself."""

from pathlib import Path
from typing import Any

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError
from llava_trainer.importing.folders import read_all
from llava_trainer.importing.names import PROJECTOR_PREFIX, Tensors, name_original, strip_peft
from llava_trainer.importing.parts import NON_LORA_PICKLE, PROJECTOR_PICKLE
from llava_trainer.model.projector import CONFIG_FILE, WEIGHTS_FILE

_FILES = (WEIGHTS_FILE, PROJECTOR_PICKLE, NON_LORA_PICKLE)
_COMPARED = ("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act")


def read_projector_part(path: Path) -> Tensors:
    """Tensors of the projector in a file, or in a folder that holds one, by hub name.

    Raises:
        StageError: InvalidModel; there is none, or more than a projector.
    """
    file = path if path.is_file() else _find(path)
    found = read_all([file])
    if any(name.startswith(PROJECTOR_PREFIX) for name in found):
        named = found
    else:
        full = {_full_name(strip_peft(name)): tensor for name, tensor in found.items()}
        named = name_original(full)
    stray = sorted(name for name in named if not name.startswith(PROJECTOR_PREFIX))
    if stray or not named:
        raise _invalid(f"{file} is not a projector: it holds {stray[0] if stray else 'nothing'}")
    return named


def check_projector_config(path: Path, config: dict[str, Any]) -> None:
    """Make sure that a projector of another run was trained on the features that the model takes.

    Raises:
        StageError: InvalidModel, naming the setting.
    """
    described = path / CONFIG_FILE
    if not path.is_dir() or not (path / WEIGHTS_FILE).is_file() or not described.is_file():
        return
    settings = read_settings(described)
    for key in _COMPARED:
        if key in settings and settings[key] != config[key]:
            raise _invalid(
                f"{described}: {key} is {settings[key]!r}, but the model's is {config[key]!r}: the projector was "
                "trained for another model"
            )


def _find(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise _invalid(f"{folder} holds no projector: none of {', '.join(_FILES)} is there")


def _full_name(name: str) -> str:
    return f"model.{name}" if name.startswith("mm_projector.") else name


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
