"""Weights of a folder: which files hold them, and the tensors in those files by the names that they have there."""

from collections.abc import Iterable
from pathlib import Path

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError
from llava_trainer.tensors.stored import StoredTensor, find_stored

# safetensors before pickles, where a folder holds both.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")


def has_weights(folder: Path) -> bool:
    """Whether the folder holds a whole model's weights."""
    return _has(folder, (*_INDEXES, *_SINGLES))


def has_only_pickles(folder: Path) -> bool:
    """Whether the folder holds a whole model's weights, and in pickles alone."""
    safetensors, pickles = zip(_INDEXES, _SINGLES, strict=True)
    return not _has(folder, safetensors) and _has(folder, pickles)


def find_weights(folder: Path) -> dict[str, StoredTensor]:
    """Tensors of a checkpoint, sharded or in one file, by their names there.

    Raises:
        StageError: InvalidModel; there are none, or a file is missing, damaged or refused.
    """
    for index, single in zip(_INDEXES, _SINGLES, strict=True):
        if (folder / index).is_file():
            return _read_sharded(folder, index)
        if (folder / single).is_file():
            return read_all([folder / single])
    raise _invalid(
        f"{folder} holds no weights: none of {', '.join((*_INDEXES, *_SINGLES))} is there; fetch the whole checkpoint"
    )


def read_all(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Tensors of several files by name.

    Raises:
        StageError: InvalidModel; a file is damaged or refused, or a name stands twice.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in find_stored(file):
            if tensor.name in found:
                raise _invalid(f"{file}: {tensor.name} is in {found[tensor.name].file.name}, too")
            found[tensor.name] = tensor
    return found


def _has(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _read_sharded(folder: Path, index: str) -> dict[str, StoredTensor]:
    path = folder / index
    places = read_settings(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise _invalid(f"{path}: weight_map must be an object from tensors to files")
    files = sorted({str(name) for name in places.values()})
    for name in files:
        if Path(name).name != name:
            raise _invalid(f"{path}: {name!r:.80} must be a file of the same folder")
        if not (folder / name).is_file():
            raise _invalid(f"{folder / name} does not exist: fetch the whole checkpoint")
    found = read_all(folder / name for name in files)
    missing = sorted(places.keys() - found.keys())
    if missing:
        raise _invalid(f"{path} lists {missing[0]}, which {places[missing[0]]} does not hold")
    return found


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
