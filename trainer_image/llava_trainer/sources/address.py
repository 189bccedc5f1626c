"""Parsed sources. In the query of one there may be a signature: messages show it without."""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from llava_api.text import show
from llava_trainer.files import ARCHIVES
from llava_trainer.sources.refusals import refused

SINGLE_FILES = (".bin", ".safetensors")
"""Endings of an https:// source that is one weights file: a projector."""


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A repository of the hub."""

    repository: str
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class BucketAddress:
    """A folder of an S3 bucket; an empty prefix is the whole bucket."""

    bucket: str
    prefix: str


@dataclass(frozen=True, kw_only=True)
class WebAddress:
    """An archive, one file or a folder behind https://."""

    url: str
    """Without the fragment."""
    kind: Literal["archive", "file", "folder"]
    name: str
    """Last part of the path; empty for a folder."""
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class ClaimAddress:
    """A folder of a claim, which the operator has mounted."""

    claim: str
    path: str


Address = HubAddress | BucketAddress | WebAddress | ClaimAddress


def parse_address(source: str, field: str) -> Address:
    """Parse a source.

    Args:
        source: as the spec has it; its patterns are held at apply, so only what they let through is told apart.
        field: where it stands, for the message.

    Raises:
        StageError: SourceRefused, where nothing could be fetched from it.
    """
    scheme, _, rest = source.partition("://")
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        return ClaimAddress(claim=claim, path=path.strip("/"))
    if scheme == "hf":
        repository, _, revision = rest.partition("@")
        return HubAddress(repository=repository, revision=revision or None)
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        return BucketAddress(bucket=bucket, prefix=prefix.strip("/"))
    if scheme == "https":
        return _parse_web(source, field)
    shown = show(source)
    raise refused(f"{field} is {shown!r} but must begin with pvc://, hf://, s3:// or https://")


def _parse_web(source: str, field: str) -> WebAddress:
    shown = show(source)
    url, _, fragment = source.partition("#")
    path = urlsplit(url).path
    name = path.rpartition("/")[2]
    sha256 = fragment.removeprefix("sha256=") or None
    if not name:
        if sha256:
            raise refused(f"{field} is {shown!r}: a folder has no one digest; remove #sha256= or name an archive")
        return WebAddress(url=url, kind="folder", name="", sha256=None)
    if name.lower().endswith(ARCHIVES):
        return WebAddress(url=url, kind="archive", name=name, sha256=sha256)
    if name.lower().endswith(SINGLE_FILES):
        return WebAddress(url=url, kind="file", name=name, sha256=sha256)
    raise refused(
        f"{field} is {shown!r} but must end with one of {', '.join(ARCHIVES)} (an archive) or with / (a folder)"
    )
