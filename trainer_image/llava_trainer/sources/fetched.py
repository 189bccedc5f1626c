"""What is written down of files that have been fetched, and where."""

import contextlib
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError

from llava_api.base import Lenient

JOURNAL = "fetched.jsonl"
_Note = TypeVar("_Note", bound=Lenient)


class Fetched(Lenient):
    """One file that came in whole; one line of the journal."""

    name: str
    address: str
    size: Annotated[int, Field(ge=0)]
    sha256: str
    """Hex."""
    version: str = ""
    """Commit, ETag or time of change, as the server told it; empty if it did not."""


def state_of(folder: Path) -> Path:
    """Where it stands what has been fetched into ``folder``, and where files lie until they are whole.

    Beside it, so that no file of a source takes the place of ours, whatever its name.
    """
    return folder.with_name(f".{folder.name}.state")


def read_note(file: Path, kind: type[_Note]) -> _Note | None:
    """What an earlier attempt wrote down in a file of its own; None if it did not, or if that is damaged."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def list_fetched(folder: Path) -> dict[str, str]:
    """Hex digests of the files that have been fetched into ``folder``, by name; {} if it was not fetched."""
    digests: dict[str, str] = {}
    try:
        stream = (state_of(folder) / JOURNAL).open("rb")
    except FileNotFoundError:
        return digests
    with stream:
        for line in stream:
            # What a crash cut off; the file has another line then.
            with contextlib.suppress(ValidationError):
                note = Fetched.model_validate_json(line)
                digests[note.name] = note.sha256
    return digests
