"""One folder of an S3 bucket: its objects and uploads, by the names that they have below it.

What is no answer of S3's is told in our own words: boto3's texts hold what came, which may be what was sent.
"""

import base64
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError, PaginationError

from llava_trainer.publishing.destination import Place
from llava_trainer.publishing.parts import Part
from llava_trainer.publishing.refusals import unavailable
from llava_trainer.retrying import TransientError
from llava_trainer.sources.credentials import read_credentials
from llava_trainer.sources.refusals import WRITING, MissingError, explain_failure
from llava_trainer.sources.remote import bare_etag
from llava_trainer.sources.s3 import S3
from llava_trainer.sources.web_identity import read_web_identity

_SHA256 = "sha256"
"""Metadata of an object: what its file hashes to, where its ETag does not say."""
_OF_PARTS = re.compile(r"[0-9a-f]{32}-\d{1,5}")
_CODE = re.compile(r"\w{1,60}")
_TAKEN = frozenset({409, 412})
"""Somebody is completing, or has completed, an object of that name."""
_BROKEN = frozenset({500, 502, 503, 504})
_UNKNOWN = 501
"""The server does not know If-None-Match."""
_MOST_ENTRIES = 100_000
"""Of one listing: a file has 10,000 parts at most, a model far fewer files."""
_OF_BUCKET = ("Name", "Bucket")
"""Where each page of a listing says which bucket it is of."""
_NEXT = ("NextContinuationToken", "NextKeyMarker", "NextPartNumberMarker")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Object:
    """What stands under a name."""

    size: int
    etag: str
    is_opaque: bool
    """Whether the ETag is no digest: with keys of KMS, and on servers with ETags of their own."""
    sha256: str
    """As whoever has uploaded it says."""


class SentPart(NamedTuple):
    """A part that the server has."""

    number: int
    size: int
    etag: str
    """As the server has it, with quotes."""


class BucketFolder:
    """The folder, asked with the credentials of a place; each request is tried again by itself.

    Args:
        place: where.

    Raises:
        StageError: SourceRefused, if a key of the Secret is none. Of each method: SourceRefused, DestinationRefused,
            DestinationUnavailable, naming field, address and fix.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._bucket, _, folder = place.address.removeprefix("s3://").partition("/")
        self._start = f"{folder}/{place.folder}/" if place.folder else f"{folder}/"
        self.address = f"s3://{self._bucket}/{self._start}".rstrip("/")
        self.what = f"{place.field}: {self.address}"
        """With which messages begin."""
        credentials = read_credentials(place.secrets, place.secret_field)
        identity = None if place.secrets.exists() else read_web_identity(place.environ)
        self._server = S3(
            self.address, credentials, place.client, place.field, identity=identity, access=WRITING,
            send=place.repeatedly, is_left_to_caller=_TAKEN | {_UNKNOWN},
        )  # fmt: skip
        self._client = self._server.client

    def list_objects(self) -> Iterator[str]:
        """Names of the objects below the folder; its own mark, an empty object that consoles make, is none."""
        for entry in self._list("list_objects_v2", "Contents", Prefix=self._start):
            name = entry["Key"].removeprefix(self._start)
            if name or entry["Size"]:
                yield name

    def list_uploads(self, name: str) -> list[str]:
        """Ids of a file's uploads that are not completed.

        By its whole key: MinIO lists none by a folder's, and what others bring to the folder is not looked at.
        """
        key = self._start + name
        entries = self._list("list_multipart_uploads", "Uploads", Prefix=key)
        return [entry["UploadId"] for entry in entries if entry["Key"] == key]

    def list_parts(self, name: str, upload_id: str) -> list[SentPart]:
        """The parts that an upload has; none of one that was completed or aborted meanwhile."""
        try:
            entries = self._list("list_parts", "Parts", **self._key(name), UploadId=upload_id)
            return [SentPart(entry["PartNumber"], entry["Size"], entry["ETag"]) for entry in entries]
        except MissingError:
            return []

    def begin_upload(self, name: str, sha256: str) -> str:
        """The id of a new upload, whose object will say of itself what its file hashes to."""
        with self._explaining():
            answer = self._client.create_multipart_upload(**self._key(name), Metadata={_SHA256: sha256})
            return str(answer["UploadId"])

    def send_part(self, name: str, upload_id: str, part: Part, content: bytes) -> SentPart:
        """Send a part, which replaces one of the same number."""
        try:
            with self._explaining():
                answer = self._client.upload_part(
                    **self._key(name), UploadId=upload_id, PartNumber=part.number, Body=content,
                    ContentMD5=base64.b64encode(part.md5).decode(),
                )  # fmt: skip
                return SentPart(part.number, part.size, str(answer["ETag"]))
        except MissingError as error:
            if upload_id in self.list_uploads(name):
                raise
            raise self._tell_gone(name) from error

    def complete(self, name: str, upload_id: str, parts: Sequence[SentPart]) -> None:
        """Make an upload the object of its name, unless there is one by now, which is for the caller to look at."""
        told = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        given = {**self._key(name), "UploadId": upload_id, "MultipartUpload": {"Parts": told}}

        def complete(**condition: str) -> int:
            # What stands there is looked at first: not every server heeds the condition.
            if self.look(name) is not None:
                return 412
            try:
                self._client.complete_multipart_upload(**given, **condition)
            except MissingError as error:
                if self.look(name) is None:
                    raise self._tell_gone(name) from error
            except ClientError as error:
                status = _status_of(error)
                if status in _BROKEN:
                    # Behind HTTP 200, too: S3 begins to answer before it knows.
                    raise TransientError(f"HTTP {status}") from None
                return status
            return 200

        with self._explaining():
            status = self._place.repeatedly(lambda: complete(IfNoneMatch="*"))
            if status == _UNKNOWN:
                logger.warning(
                    "%s: the server does not know If-None-Match: that nothing else is written there at the same moment "
                    "is for you to see to", self.what,
                )  # fmt: skip
                self._place.repeatedly(complete)

    def look(self, name: str) -> Object | None:
        """What stands under a name; None for nothing."""
        with self._explaining():
            try:
                answer = self._client.head_object(**self._key(name))
            except MissingError:
                return None
            etag = bare_etag(str(answer.get("ETag", "")))
            has_kms = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms")
            return Object(
                size=int(answer["ContentLength"]), etag=etag, is_opaque=has_kms or not _OF_PARTS.fullmatch(etag),
                sha256=str(answer.get("Metadata", {}).get(_SHA256, "")),
            )  # fmt: skip

    def abort(self, name: str, upload_id: str) -> bool:
        """Have an upload forgotten; False if it was already."""
        with self._explaining():
            try:
                self._client.abort_multipart_upload(**self._key(name), UploadId=upload_id)
            except MissingError:
                return False
            return True

    def _list(self, operation: str, key: str, **arguments: str) -> Iterator[Mapping[str, Any]]:
        """All entries of a listing that has an end."""
        num_entries = 0
        with self._explaining():
            for page in self._client.get_paginator(operation).paginate(**{"Bucket": self._bucket, **arguments}):
                if not any(page.get(name) for name in _OF_BUCKET):
                    # Some other page, of a proxy, say, would look like a bucket that holds nothing.
                    raise ValueError("no listing")
                for entry in page.get(key, ()):
                    num_entries += 1
                    if num_entries > _MOST_ENTRIES:
                        raise unavailable(f"{self.what} lists without end: more than {_MOST_ENTRIES:,} entries")
                    if missing := [name for name in _FIELDS[key] if name not in entry]:
                        raise ValueError(f"no {missing[0]}")
                    yield entry
                if page.get("IsTruncated") and not any(page.get(name) for name in _NEXT):
                    raise unavailable(f"{self.what} lists without end: its page names no next one")

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except PaginationError as error:
            raise unavailable(f"{self.what} lists without end: a page names itself as the next one") from error
        except ClientError as error:
            raise self._explain(error) from None
        except (BotoCoreError, KeyError, TypeError, ValueError) as error:
            raise self._server.explain_strange(error) from None

    def _explain(self, error: ClientError) -> Exception:
        told = error.response.get("Error", {}).get("Code", "")
        code = told if isinstance(told, str) and _CODE.fullmatch(told) else ""
        explained = explain_failure(
            _status_of(error), self._place.field, self.address, code=code, role=self._server.role, access=WRITING
        )
        return unavailable(f"{self.what}: {explained}") if isinstance(explained, TransientError) else explained

    def _tell_gone(self, name: str) -> Exception:
        return unavailable(f"{self.what}: the upload of {name} is gone: somebody has aborted it")

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._start + name}


_FIELDS = {
    "Contents": ("Key", "Size"), "Uploads": ("Key", "UploadId"), "Parts": ("PartNumber", "Size", "ETag"),
}  # fmt: skip
"""What is read of each entry of a listing."""


def _status_of(error: ClientError) -> int:
    """Of an answer that boto3 has read; 500 where a body tells of an error behind HTTP 200, which S3 does."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
