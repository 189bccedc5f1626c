"""A folder of an S3 bucket.

Every file is a multipart upload: nothing of it is visible until it is completed, and another attempt finds its parts.
All parts of all files are sent first, then the uploads are completed, the weights first and ``publication.json`` last.
What stands there already is compared by its ETag, which follows from the parts' MD5; the server checks each part
against the signature. boto3's own transfers know neither: they begin anew, and a small file is visible at once.
"""

import base64
import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, PaginationError

from llava_api.text import show
from llava_trainer.publishing.content import Content, Item, open_item
from llava_trainer.publishing.destination import Place, Sent
from llava_trainer.publishing.parts import PART_BYTES, Part, digest_parts, etag_of, read_part
from llava_trainer.publishing.refusals import refused, unavailable
from llava_trainer.retrying import TransientError
from llava_trainer.sources.credentials import read_credentials
from llava_trainer.sources.refusals import WRITING, MissingError, explain_failure
from llava_trainer.sources.remote import bare_etag
from llava_trainer.sources.s3 import S3
from llava_trainer.sources.web_identity import read_web_identity

_SHA256 = "sha256"
"""Metadata of an object: what its file hashes to, for whoever has copied it in other parts."""
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

_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Object:
    """What stands under a key."""

    size: int
    etag: str
    is_opaque: bool
    """Whether the ETag is no digest: with keys of KMS or of the client, and on servers with ETags of their own."""
    sha256: str
    """As whoever has uploaded it says."""


@dataclass(frozen=True, kw_only=True)
class _Upload:
    """A file that is not visible yet."""

    item: Item
    parts: Sequence[Part]
    id: str
    etags: Mapping[int, str]
    """Of the parts, by their numbers."""


class BucketDestination:
    """A folder of a bucket; see ``Destination``.

    Args:
        place: where.
        part_bytes: see ``digest_parts``; S3 wants 5 MiB at least.

    Raises:
        StageError: SourceRefused, if a key of the Secret is none.
    """

    def __init__(self, place: Place, *, part_bytes: int = PART_BYTES) -> None:
        self._place = place
        self._part_bytes = part_bytes
        bucket, _, folder = place.address.removeprefix("s3://").partition("/")
        self._bucket = bucket
        self._start = f"{folder}/{place.folder}/" if place.folder else f"{folder}/"
        self._told = f"s3://{bucket}/{self._start}".rstrip("/")
        self._what = f"{place.field}: {self._told}"
        credentials = read_credentials(place.secrets, place.secret_field)
        identity = None if place.secrets.exists() else read_web_identity(place.environ)
        self._server = S3(
            self._told, credentials, place.client, place.field, identity=identity, access=WRITING,
            send=place.repeatedly, is_left_to_caller=_TAKEN | {_UNKNOWN},
        )  # fmt: skip
        self._client = self._server.client

    def publish(self, content: Content, on_bytes: Callable[[int], None]) -> Sent:
        """See ``Destination.publish``."""
        known = {item.name for item in content.items}
        standing = self._list_objects(known)
        begun = {item.name: self._list_uploads(item) for item in content.items}
        sent, done, uploads = 0, 0, []
        for item in content.items:
            parts = digest_parts(item, self._part_bytes)
            if item.name in standing:
                self._check_same(item, parts)
            else:
                upload, num_bytes = self._upload(item, parts, begun[item.name], done, on_bytes)
                uploads.append(upload)
                sent += num_bytes
            done += item.size
            on_bytes(done)
        for upload in uploads:
            self._complete(upload)
        used = {upload.id for upload in uploads}
        self._abort((item, id) for item in content.items for id in begun[item.name] if id not in used)
        return Sent(sent_bytes=sent, was_there=not uploads)

    def _list_objects(self, known: set[str]) -> set[str]:
        """Those of the files that stand there.

        Raises:
            StageError: DestinationRefused; something else stands there, too.
        """
        found = set()
        with self._explaining():
            for entry in self._list("list_objects_v2", "Contents", Prefix=self._start):
                name = self._name_of(entry)
                if name is None or (not name and not entry.get("Size")):
                    continue
                if name not in known:
                    raise self._refuse_other(f"{show(name, max_chars=100)}, which is no part of this publication")
                found.add(name)
        return found

    def _list_uploads(self, item: Item) -> list[str]:
        """Uploads of a file that are not completed.

        By its whole key: MinIO lists none by a folder's, and what others bring to the folder is not looked at.
        """
        key = self._start + item.name
        with self._explaining():
            listed = self._list("list_multipart_uploads", "Uploads", Prefix=key)
            return [str(entry["UploadId"]) for entry in listed if entry["Key"] == key]

    def _list(self, operation: str, key: str, **arguments: Any) -> Iterator[Mapping[str, Any]]:
        """All entries of a listing.

        Raises:
            StageError: DestinationUnavailable, too, if it has no end.
        """
        given = {"Bucket": self._bucket, **arguments}
        num_entries = 0
        with self._explaining():
            for page in self._client.get_paginator(operation).paginate(**given):
                if not any(page.get(name) for name in _OF_BUCKET):
                    # Some other page, of a proxy, say, would look like a bucket that holds nothing.
                    raise ValueError("no listing")
                for entry in page.get(key, ()):
                    num_entries += 1
                    if num_entries > _MOST_ENTRIES:
                        raise unavailable(f"{self._what} lists without end: more than {_MOST_ENTRIES:,} entries")
                    yield entry
                if page.get("IsTruncated") and not any(page.get(name) for name in _NEXT):
                    raise unavailable(f"{self._what} lists without end: its page names no next one")

    def _name_of(self, entry: Mapping[str, Any]) -> str | None:
        """Relative to the folder; None for what is published beside."""
        name = str(entry["Key"]).removeprefix(self._start)
        return None if self._place.beside and name.startswith(f"{self._place.beside}/") else name

    def _upload(
        self, item: Item, parts: Sequence[Part], begun: Sequence[str], done: int, on_bytes: Callable[[int], None]
    ) -> tuple[_Upload, int]:
        """Send what is missing of a file; the upload, and how many bytes were sent."""
        upload_id, etags = self._find_upload(item, parts, begun)
        sent = 0
        with open_item(item) as stream:
            for part in parts:
                if part.number not in etags:
                    self._place.check_attempt()
                    etags[part.number] = self._send_part(item, part, read_part(stream, item, part), upload_id)
                    sent += part.size
                on_bytes(done + part.offset + part.size)
        return _Upload(item=item, parts=parts, id=upload_id, etags=etags), sent

    def _find_upload(self, item: Item, parts: Sequence[Part], begun: Sequence[str]) -> tuple[str, dict[int, str]]:
        """The upload that has most of the file's parts, a new one if none has any; ETags of the parts it has."""
        best: tuple[str, dict[int, str]] | None = None
        for upload_id in begun:
            have = self._list_parts(item, parts, upload_id)
            if have and (best is None or len(have) > len(best[1])):
                best = (upload_id, have)
        if best is not None:
            return best
        return self._ask(lambda: self._begin(item)), {}

    def _list_parts(self, item: Item, parts: Sequence[Part], upload_id: str) -> dict[int, str]:
        """ETags of an upload's parts, if all are the file's.

        None of one that has others, or none yet: another run, which may be at it, has begun it, and has told what its
        own file hashes to. So may one whose parts are all the file's as far as they go; there an ETag tells more.
        """
        wanted = {(part.number, part.size): part.md5.hex() for part in parts}
        have = {}
        try:
            with self._explaining():
                for entry in self._list("list_parts", "Parts", Key=self._start + item.name, UploadId=upload_id):
                    number, etag = int(entry["PartNumber"]), str(entry["ETag"])
                    if wanted.get((number, int(entry["Size"]))) != bare_etag(etag):
                        return {}
                    have[number] = etag
        except MissingError:
            # Completed or aborted since the listing.
            return {}
        return have

    def _begin(self, item: Item) -> str:
        answer = self._client.create_multipart_upload(**self._key(item), Metadata={_SHA256: item.sha256})
        return str(answer["UploadId"])

    def _send_part(self, item: Item, part: Part, content: bytes, upload_id: str) -> str:
        def send() -> str:
            answer = self._client.upload_part(
                **self._key(item), UploadId=upload_id, PartNumber=part.number, Body=content,
                ContentMD5=base64.b64encode(part.md5).decode(),
            )  # fmt: skip
            return str(answer["ETag"])

        try:
            return self._ask(send)
        except MissingError as error:
            if upload_id in self._list_uploads(item):
                raise
            raise self._tell_gone(item) from error

    def _complete(self, upload: _Upload) -> None:
        """Make a file visible, unless somebody has put another one there."""
        parts = [{"PartNumber": part.number, "ETag": upload.etags[part.number]} for part in upload.parts]
        given = {**self._key(upload.item), "UploadId": upload.id, "MultipartUpload": {"Parts": parts}}

        def complete(**condition: str) -> int:
            # What stands there is looked at first: not every server knows, or heeds, the condition.
            if self._look(upload.item) is not None:
                return 412
            try:
                self._client.complete_multipart_upload(**given, **condition)
            except MissingError as error:
                if self._look(upload.item) is None:
                    raise self._tell_gone(upload.item) from error
            except ClientError as error:
                status = _status_of(error)
                if status in _BROKEN:
                    # Behind HTTP 200, too: S3 begins to answer before it knows.
                    raise TransientError(f"HTTP {status}") from None
                return status
            return 200

        self._place.check_attempt()
        with self._explaining():
            status = self._place.repeatedly(lambda: complete(IfNoneMatch="*"))
            if status == _UNKNOWN:
                self._tell_unconditional()
                self._place.repeatedly(complete)
        self._check_same(upload.item, upload.parts)

    def _check_same(self, item: Item, parts: Sequence[Part]) -> None:
        """Make sure that what stands there is the file.

        Raises:
            StageError: DestinationRefused; it is another one. DestinationUnavailable; it is gone.
        """
        found = self._ask(lambda: self._look(item))
        if found is None:
            raise unavailable(f"{self._what}: {item.name} was there and is gone: somebody deletes there")
        is_same = found.sha256 == item.sha256 if found.is_opaque else found.etag == etag_of(parts)
        if found.size != item.size or not is_same:
            raise self._refuse_other(f"another {item.name}")

    def _look(self, item: Item) -> _Object | None:
        try:
            answer = self._client.head_object(**self._key(item))
        except MissingError:
            return None
        etag = bare_etag(str(answer.get("ETag", "")))
        is_opaque = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or not _OF_PARTS.fullmatch(etag)
        said = str(answer.get("Metadata", {}).get(_SHA256, ""))
        return _Object(size=int(answer["ContentLength"]), etag=etag, is_opaque=is_opaque, sha256=said)

    def _abort(self, uploads: Iterable[tuple[Item, str]]) -> None:
        """Get rid of uploads of what stands there by now: they cost as much as objects, and nobody sees them."""
        for item, upload_id in uploads:
            self._place.check_attempt()
            given = {**self._key(item), "UploadId": upload_id}
            try:
                self._ask(functools.partial(self._client.abort_multipart_upload, **given))
            except MissingError:
                continue
            logger.info("%s: an upload of %s that was left behind is aborted", self._what, item.name)

    def _ask(self, ask: Callable[[], _Result]) -> _Result:
        with self._explaining():
            return ask()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """What boto3 makes of answers, in our own words: its texts hold what came."""
        try:
            yield
        except PaginationError as error:
            raise unavailable(f"{self._what} lists without end: a page names itself as the next one") from error
        except ClientError as error:
            raise self._explain(error) from None
        except (BotoCoreError, KeyError, TypeError, ValueError) as error:
            raise self._server.explain_strange(error) from None

    def _explain(self, error: ClientError) -> Exception:
        told = error.response.get("Error", {}).get("Code", "")
        code = told if isinstance(told, str) and _CODE.fullmatch(told) else ""
        explained = explain_failure(
            _status_of(error), self._place.field, self._told, code=code, role=self._server.role, access=WRITING
        )
        return unavailable(f"{self._what}: {explained}") if isinstance(explained, TransientError) else explained

    def _tell_unconditional(self) -> None:
        logger.warning(
            "%s: the server does not know If-None-Match: that nothing else is written there at the same moment is for "
            "you to see to", self._what,
        )  # fmt: skip

    def _tell_gone(self, item: Item) -> Exception:
        return unavailable(f"{self._what}: the upload of {item.name} is gone: somebody has aborted it")

    def _key(self, item: Item) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._start + item.name}

    def _refuse_other(self, what: str) -> Exception:
        return refused(
            f"{self._what} holds {what}: name another folder, or empty this one if nobody needs it, and raise "
            "spec.retry"
        )


def _status_of(error: ClientError) -> int:
    """Of an answer that boto3 has read; 500 where a body tells of an error behind HTTP 200, which S3 does."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
