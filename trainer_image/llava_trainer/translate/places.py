"""Paths of the machine that a command was written for, as sources of a manifest."""

import posixpath
import re
from dataclasses import dataclass

from llava_trainer.translate.errors import TranslateError
from llava_trainer.translate.shell import unresolved

DATASET_CLAIM = "my-dataset"
MODEL_CLAIM = "my-models"
_HUB_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_NAME = re.compile(f"{_HUB_PART}/{_HUB_PART}")
_FOLDERS = frozenset({
    "checkpoint", "checkpoints", "ckpt", "ckpts", "data", "dataset", "datasets", "model", "models", "output", "outputs",
    "playground", "pretrained", "weights", "work_dirs",
})  # fmt: skip
"""First parts of a path that are folders and no owners on the hub."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A PersistentVolumeClaim, and a folder in it."""

    name: str
    folder: str = ""
    is_placeholder: bool = False

    def source(self, path: str = "") -> str:
        """The ``pvc://`` source of a path below the folder."""
        return f"pvc://{self.name}/{posixpath.join(self.folder, path) if path else self.folder}"


def read_claim(option: str, text: str | None, placeholder: str) -> Claim:
    """Read ``CLAIM`` or ``CLAIM/FOLDER``; None gives the placeholder.

    Raises:
        TranslateError: not the name of a claim.
    """
    if text is None:
        return Claim(name=placeholder, is_placeholder=True)
    name, _, folder = text.removeprefix("pvc://").partition("/")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name) or ".." in folder.split("/"):
        raise TranslateError(f"{option} {text}: must be CLAIM or CLAIM/FOLDER, the name of a PersistentVolumeClaim")
    return Claim(name=name, folder=folder.strip("/"))


def is_hub_name(text: str) -> bool:
    """Whether a model is named as on the hub (owner/name) and not by a path."""
    return bool(_HUB_NAME.fullmatch(text)) and text.split("/")[0].lower() not in _FOLDERS


def tidy(path: str) -> str:
    """A path without its root, with variables without value by their names: ``/a/$B`` becomes ``a/B``.

    Slashes at the end, ``~``, ``.`` and leading ``..`` go.
    """
    for name in unresolved(path):
        path = re.sub(r"\$\{?" + re.escape(name) + r"\b\}?", f"ARG{name}" if name.isdecimal() else name, path)
    parts = [part for part in posixpath.normpath(path.replace("~", "", 1)).split("/") if part not in {"", ".", ".."}]
    return "/".join(parts)


@dataclass(frozen=True, kw_only=True)
class DataFolder:
    """A folder that holds both the annotations and the images."""

    base: str
    """As the command has it; empty where the two have nothing in common."""
    file: str
    """Annotations, relative to it."""
    images: str
    """Folder of the images, relative to it."""


def common_folder(data_path: str, image_folder: str | None) -> DataFolder:
    """The deepest folder that holds annotations and images."""
    if image_folder is None:
        return DataFolder(base=posixpath.dirname(data_path), file=tidy(posixpath.basename(data_path)), images="")
    data, images = posixpath.normpath(data_path), posixpath.normpath(image_folder)
    if data.startswith("/") != images.startswith("/") or data.startswith("..") != images.startswith(".."):
        return DataFolder(base="", file=tidy(data), images=tidy(images))
    base = (
        posixpath.commonpath([posixpath.dirname(data) or ".", images])
        if data.startswith("/")
        else _common(posixpath.dirname(data), images)
    )
    if base in {"", "/", "."}:
        return DataFolder(base=base, file=tidy(data), images=tidy(images))
    return DataFolder(base=base, file=tidy(posixpath.relpath(data, base)), images=tidy(posixpath.relpath(images, base)))


def _common(left: str, right: str) -> str:
    shared = []
    for one, other in zip(left.split("/"), right.split("/"), strict=False):
        if one != other:
            break
        shared.append(one)
    return "/".join(shared)


def check_name(name: str, longest: int) -> str:
    """A run's name that the person gives.

    Raises:
        TranslateError: a resource cannot be named so.
    """
    if len(name) > longest or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise TranslateError(
            f"--name {name}: must begin with a letter and hold at most {longest} lower-case letters, digits and '-'"
        )
    return name


def make_name(path: str | None, fallback: str, longest: int) -> str:
    """A run's name from the folder that the command writes to."""
    name = re.sub(r"[^a-z0-9]+", "-", tidy(path or "").rsplit("/", 1)[-1].lower()).strip("-")
    name = re.sub(r"^[^a-z]+", "", name)[:longest].strip("-")
    return name or fallback
