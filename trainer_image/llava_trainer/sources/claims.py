"""Folders of claims: other people's pods write to them, and what a link in one names is anything in this pod."""

from pathlib import Path, PurePosixPath

from llava_api.text import show
from llava_trainer.files import tell_names
from llava_trainer.sources.address import ClaimAddress
from llava_trainer.sources.refusals import refused


def check_claim(path: Path, address: ClaimAddress, what: str, *, is_model: bool) -> None:
    """Make sure that a source on a claim is there and is read from that claim.

    Links inside the claim are fine: so the hub's own cache keeps its models. The images of a dataset are looked at
    one by one when they are read (``files.resolve_inside``).

    Args:
        path: where the operator has mounted the source.
        address: what the source says.
        what: field and address, for messages.
        is_model: whether the files of the folder are opened by their names.

    Raises:
        StageError: SourceRefused; it is not there, or it or a file in it leads out of the claim or is no plain file.
    """
    if not path.exists():
        there = next(parent for parent in path.parents if parent.exists())
        told = f"there is no {path.relative_to(there)} on the claim beside {tell_names(there)}"
        raise refused(f"{what}: {told}; correct the path in {what.partition(':')[0]}")
    parts = PurePosixPath(address.path).parts
    is_whole = bool(parts) and path.parts[-len(parts) :] == parts
    claim = (path.parents[len(parts) - 1] if is_whole else path).resolve()
    for one in (path, *(path.iterdir() if is_model and path.is_dir() else ())):
        name = f"its {show(one.name, max_chars=100)}" if one != path else "it"
        if not one.resolve().is_relative_to(claim):
            raise refused(f"{what}: {name} leads out of the claim through a symbolic link: put the file itself there")
        if one.exists() and not (one.is_file() or one.is_dir()):
            # A pipe is waited for without end when it is opened, and a device is none of a model's files.
            raise refused(f"{what}: {name} is neither a file nor a folder: remove it")
