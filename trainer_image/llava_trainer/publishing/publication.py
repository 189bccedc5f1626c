"""``publication.json``: what was published together, by which run.

It holds nothing of when and where, so that publishing the same again makes the same bytes. What is read of it at a
destination was written by whoever may write there.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from llava_api.base import Lenient
from llava_api.run_config import RunIdentity
from llava_trainer.publishing.content import PUBLICATION, SIGNATURE, Item, What

MAX_BYTES = 4 << 20
"""Of a ``publication.json`` that is read at a destination; one of ours has some 100 bytes a file."""
_PROJECT = "llava-finetune-operator"


class Run(Lenient):
    """The run that made it."""

    namespace: Annotated[str, Field(max_length=63)]
    name: Annotated[str, Field(max_length=253)]
    uid: Annotated[str, Field(max_length=64)]


class PublishedFile(Lenient):
    """One file."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(alias="bytes", ge=0)]


class Publication(Lenient):
    """What ``publication.json`` holds."""

    version: Literal[1] = 1
    made_by: Literal["llava-finetune-operator"] = "llava-finetune-operator"
    made_by_version: Annotated[str, Field(max_length=64)]
    run: Run
    what: What
    files: dict[Annotated[str, Field(max_length=1024)], PublishedFile]
    """By path; all but this one and the signature, which signs this one."""


def describe_publication(run: RunIdentity, what: What, items: Sequence[Item]) -> str:
    """The text of ``publication.json`` for these files."""
    publication = Publication(
        made_by_version=version(_PROJECT),
        run=Run(namespace=run.namespace, name=run.name, uid=run.uid),
        what=what,
        files={
            item.name: PublishedFile(sha256=item.sha256, size=item.size)
            for item in sorted(items, key=lambda item: item.name)
            if item.name not in (PUBLICATION, SIGNATURE)
        },
    )
    return publication.model_dump_json(indent=2, by_alias=True) + "\n"


def parse_publication(content: bytes) -> Publication | None:
    """A ``publication.json`` that stands at a destination; None if it is none of this project's."""
    try:
        return Publication.model_validate_json(content[: MAX_BYTES + 1]) if len(content) <= MAX_BYTES else None
    except ValidationError:
        return None
