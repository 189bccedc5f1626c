"""Folders of claims: other people's pods write to them, and what a link in one names is anything in this pod."""

from pathlib import Path

from llava_api.text import show
from llava_trainer.sources.refusals import refused


def check_claim(path: Path, root: Path, what: str, *, look_inside: bool) -> None:
    """Make sure that a source on a claim is read from that claim.

    Links inside the claim are fine: so the hub's own cache keeps its models. The pictures of a dataset are looked at
    one by one when they are read (``data.images.resolve_inside``).

    Args:
        path: the source, which exists.
        root: where its claim is mounted.
        what: field and address, for messages.
        look_inside: whether the files of the folder are opened by their names: a model's.

    Raises:
        StageError: SourceRefused; it, or a file in it, leads out of the claim or is no plain file.
    """
    inside = root.resolve()
    for one in (path, *(path.iterdir() if look_inside and path.is_dir() else ())):
        name = f"its {show(one.name, max_chars=100)}" if one != path else "it"
        if not one.resolve().is_relative_to(inside):
            raise refused(f"{what}: {name} leads out of the claim through a symbolic link: put the file itself there")
        if one.exists() and not (one.is_file() or one.is_dir()):
            # A pipe is waited for without end when it is opened, and a device is none of a model's files.
            raise refused(f"{what}: {name} is neither a file nor a folder: remove it")
