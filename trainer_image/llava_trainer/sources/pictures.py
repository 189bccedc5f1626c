"""Which files of a dataset are needed: its own, and the pictures that they name."""

import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

from llava_api.spec import Dataset
from llava_trainer.data.dataset import _read as read_samples_of
from llava_trainer.data.samples import Sample

_WORDS = ".txt"
_BESIDE_WORDS = ("_box.txt", "_image.txt")


def list_own_files(dataset: Dataset) -> list[str]:
    """The files that hold samples, and what they need to be read, relative to the source."""
    names = [dataset.file]
    if dataset.validation.file is not None:
        names.append(dataset.validation.file)
    if dataset.format == "ubiai":
        # The OCR archive is three files.
        words = [name for name in names if name.endswith(_WORDS)]
        names += [f"{name.removesuffix(_WORDS)}{ending}" for name in words for ending in _BESIDE_WORDS]
        if dataset.ubiai is not None and dataset.ubiai.documents is not None:
            names.append(dataset.ubiai.documents)
    return list(dict.fromkeys(posixpath.normpath(name) for name in names))


def may_be_needed(dataset: Dataset, name: str) -> bool:
    """Whether a file of the source can be one that the dataset needs, before its own files have been read."""
    images = posixpath.normpath(dataset.images) if dataset.images else "."
    return images == "." or name.startswith(f"{images}/") or name in list_own_files(dataset)


def place_pictures(dataset: Dataset, pictures: Iterable[str]) -> list[str]:
    """Where pictures lie, relative to the source. Those that would leave it are left out: the data's checks tell."""
    placed = (posixpath.normpath(posixpath.join(dataset.images, picture)) for picture in pictures)
    return sorted({name for name in placed if not name.startswith(("/", "../")) and name not in (".", "..")})


def read_picture_names(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Pictures that the dataset's own files name, relative to its folder of pictures.

    What cannot be read is passed over here: the data's checks come later and tell all of it.
    """
    names = [dataset.file] if dataset.validation.file is None else [dataset.file, dataset.validation.file]
    for name in names:
        for item in read_samples_of(dataset, folder, name):
            if isinstance(item, Sample):
                yield from item.images
