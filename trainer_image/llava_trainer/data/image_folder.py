"""Where a dataset's images lie: files that it names, and those that prepare keeps on the run's volume.

Kept are images that the dataset's own files held, which are called ``embedded:`` and the digest of their content, and
those that are named by http address, under the digest of that. Whoever writes such a name as a path gets an image of
the same dataset, or none.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from llava_api.run_config import RunConfig
from llava_api.spec import Dataset
from llava_trainer.data.images import ImageError, MissingImageError, resolve_image
from llava_trainer.files import ARCHIVES, aside_of, make_folder, tell_names

_EMBEDDED = re.compile(r"embedded:([0-9a-f]{64})")
_LINK = re.compile(r"https?://", re.IGNORECASE)
_NOT_ASKED = (
    "is named by address, and this installation fetches none (the chart's policy.pictureHosts): put it into the "
    "dataset and name its path, or write it as a data: URL"
)


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Where images lie.

    Attributes:
        root: the dataset; nothing outside it is read.
        name: folder that image paths are relative to, itself relative to ``root``; may be empty.
        embedded: folder of the images that prepare keeps, on the run's volume.
        unfetched: why images that are named by address are not there.
    """

    root: Path
    name: str = ""
    embedded: Path | None = None
    unfetched: Mapping[str, str] = field(default_factory=dict)

    def find(self, image: str) -> Path:
        """Where an image lies that prepare has checked."""
        kept = name_kept(image)
        return self.root / self.name / image if kept is None or self.embedded is None else self.embedded / kept

    def resolve(self, image: str) -> Path:
        """Where an image lies, looked at for the first time.

        Raises:
            ImageError: it is not there, or outside the dataset.
        """
        if name_kept(image) is not None and (path := self.find(image)).is_file():
            return path
        if is_link(image):
            raise ImageError(self.unfetched.get(image, _NOT_ASKED))
        try:
            return resolve_image(self.root, self.root / self.name, image)
        except MissingImageError as error:
            raise ImageError(f"{error}{self._hint}") from error

    def display_name(self, image: str) -> str:
        """What messages call an image: its path below the dataset, or that it has none."""
        held = _EMBEDDED.fullmatch(image)
        if held is not None:
            return f"in the entry ({held[1][:12]})"
        if is_link(image):
            return show_link(image)
        return f"{self.name.rstrip('/')}/{image}" if self.name else image

    @cached_property
    def _hint(self) -> str:
        """Where images may be that are not there: in an archive that has not been unpacked, or in another folder."""
        folder = self.root / self.name
        if folder == self.root:
            archives = sorted(path.name for path in self.root.glob("*") if path.name.lower().endswith(ARCHIVES))
        else:
            names = (f"{self.name.rstrip('/')}{ending}" for ending in ARCHIVES if not folder.exists())
            archives = [name for name in names if (self.root / name).is_file()]
        if not archives:
            missing = f"; dataset.images is {self.name}, but the dataset holds {tell_names(self.root)}"
            return "" if folder.is_dir() else missing
        ending = next(ending for ending in ARCHIVES if archives[0].lower().endswith(ending))
        target = archives[0][: -len(ending)]
        return f"; {archives[0]} lies there: unpack it to a folder {target} and set dataset.images to {target}"


def is_link(image: str) -> bool:
    """Whether an image is named by http address."""
    return _LINK.match(image) is not None


def show_link(image: str) -> str:
    """An address for messages: without a query, in which there may be a signature."""
    return image.partition("?")[0]


def name_kept(image: str) -> str | None:
    """Name of the file that prepare keeps of an image; None where it lies in the dataset."""
    held = _EMBEDDED.fullmatch(image)
    if held is not None:
        return held[1]
    return hashlib.sha256(image.encode()).hexdigest() if is_link(image) else None


def folder_of(config: RunConfig, dataset: Dataset, root: Path) -> ImageFolder:
    """The images of one of a run's datasets, which lies at ``root``."""
    return ImageFolder(root=root, name=dataset.images, embedded=config.volume.embedded_images_dir)


def training_images(config: RunConfig) -> ImageFolder:
    """The images of the dataset that training learns from and evaluation asks about."""
    return folder_of(config, config.dataset, config.dataset_dir)


def retention_images(config: RunConfig) -> ImageFolder | None:
    """The images of the retention set; None without one."""
    if config.evaluation.retention is None or config.retention_dir is None:
        return None
    return folder_of(config, config.evaluation.retention.dataset, config.retention_dir)


def keep_embedded(folder: Path, content: bytes) -> str:
    """Write an image that a dataset's file holds into ``folder``, once, and return what samples call it.

    Raises:
        OSError: the volume cannot be written.
    """
    digest = hashlib.sha256(content).hexdigest()
    path = folder / digest
    if not path.exists():
        make_folder(folder)
        aside = aside_of(path)
        aside.write_bytes(content)
        aside.rename(path)
    return f"embedded:{digest}"


def overlook_embedded(_content: bytes) -> str:
    """In place of ``keep_embedded`` where a dataset is only read for the files that it names."""
    return f"embedded:{0:064}"
