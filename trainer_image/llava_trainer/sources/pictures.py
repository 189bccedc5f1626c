"""Which files of a dataset are needed: its own, and the pictures that they name."""

import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from llava_api.spec import Dataset, Ubiai
from llava_trainer.data.conversations import read_conversations
from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.findings import Finding
from llava_trainer.data.images import resolve_inside
from llava_trainer.data.samples import Sample
from llava_trainer.data.ubiai import read_ubiai
from llava_trainer.data.ubiai_ocr import BOX_SUFFIX, IMAGE_SUFFIX


def list_own_files(dataset: Dataset) -> list[str]:
    """The files without which a dataset cannot be read, relative to the source."""
    names = _sample_files(dataset)
    if dataset.ubiai is not None and dataset.ubiai.documents is not None:
        names.append(dataset.ubiai.documents)
    return list(dict.fromkeys(posixpath.normpath(name) for name in names))


def list_companions(dataset: Dataset) -> list[str]:
    """The other files of an OCR archive, if the dataset should turn out to be one."""
    if dataset.format != "ubiai":
        return []
    words = (PurePosixPath(posixpath.normpath(name)) for name in _sample_files(dataset))
    return [
        str(path.with_name(f"{path.stem}{suffix}{path.suffix}"))
        for path in words
        if not path.suffix.lower().startswith(".json")
        for suffix in (BOX_SUFFIX, IMAGE_SUFFIX)
    ]


def name_packed_pictures(dataset: Dataset) -> str | None:
    """The archive in which the pictures may lie instead of their folder; None where they lie at the source's root."""
    images = posixpath.normpath(dataset.images)
    return None if images == "." else f"{images}.zip"


def may_be_needed(dataset: Dataset, name: str) -> bool:
    """Whether the dataset may need a file of the source: told before its own files have been read."""
    images = posixpath.normpath(dataset.images)
    own = (*list_own_files(dataset), *list_companions(dataset), name_packed_pictures(dataset))
    return images == "." or name.startswith(f"{images}/") or name in own


def place_pictures(dataset: Dataset, pictures: Iterable[str]) -> list[str]:
    """Where pictures lie, relative to the source. Those that would leave it are left out: the data's checks tell."""
    placed = (posixpath.normpath(posixpath.join(dataset.images, picture)) for picture in pictures)
    return sorted({name for name in placed if not name.startswith(("/", "../")) and name not in (".", "..")})


def read_picture_names(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Pictures that the dataset's own files name, relative to its folder of pictures.

    What cannot be read is passed over here: the data's checks come later and tell all of it.
    """
    for name in _sample_files(dataset):
        for item in _read(dataset, folder, name):
            if isinstance(item, Sample):
                yield from item.images


def _sample_files(dataset: Dataset) -> list[str]:
    held_out = dataset.validation.file
    return [dataset.file] if held_out is None else [dataset.file, held_out]


def _read(dataset: Dataset, folder: Path, name: str) -> Iterator[Sample | Finding]:
    def resolve(wanted: str) -> Path:
        return resolve_inside(folder, folder, wanted)

    position = ReadingPosition()
    if dataset.format == "llava":
        return read_conversations(resolve(name), name, position)
    return read_ubiai(name, dataset.ubiai or Ubiai(), resolve, position)
