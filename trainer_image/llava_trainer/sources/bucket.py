"""Folders of S3 buckets.

boto3 lists and signs (``s3``); the files themselves come as everything else does, so that they resume and are checked
in one way.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
from botocore.exceptions import BotoCoreError, ClientError, PaginationError

from llava_trainer.retrying import Retrier
from llava_trainer.sources.address import BucketAddress
from llava_trainer.sources.credentials import Credentials
from llava_trainer.sources.refusals import refused
from llava_trainer.sources.remote import Digest, Listed, RemoteFile, bare_etag, check_name
from llava_trainer.sources.s3 import S3
from llava_trainer.sources.web_identity import WebIdentity

_SEPARATOR = "\0"
"""Of an ETag and a key, neither of which can hold it."""
_SIGNED_FOR_S = 3600
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class Bucket:
    """One folder of a bucket.

    Args:
        address: bucket and prefix.
        credentials: keys, endpoint and region, as far as the Secret has them.
        client: the way out (``network``).
        field: the source's field, for messages.
        repeatedly: tries a request again; each by itself, so that a listing of many pages goes on where it broke off.
        identity: who the pod is, where no Secret says as whom to ask.

    Raises:
        StageError: SourceRefused, if the endpoint is no address.
    """

    def __init__(
        self, address: BucketAddress, credentials: Credentials, client: httpx.Client, field: str, repeatedly: Retrier,
        *, identity: WebIdentity | None = None,
    ) -> None:  # fmt: skip
        self._address = address
        self._field = field
        told = f"s3://{address.bucket}/{address.prefix}".rstrip("/")
        self._what = f"{field}: {told}"
        self._start = f"{address.prefix}/" if address.prefix else ""
        self._server = S3(told, credentials, client, field, identity=identity, send=repeatedly)

    def list_files(self, is_wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Listed]:
        """The objects below the prefix, named relative to it.

        Raises:
            StageError: SourceRefused or SourceUnavailable, naming field, address and fix.
        """
        pages = self._server.client.get_paginator("list_objects_v2").paginate(
            Bucket=self._address.bucket, Prefix=self._start
        )
        try:
            for page in pages:
                for entry in page.get("Contents", ()):
                    name = entry["Key"].removeprefix(self._start)
                    if name and not name.endswith("/") and is_wanted(name):
                        yield self._describe(name, entry)
                if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                    raise refused(f"{self._what} lists without end: its page names no next one")
        except PaginationError as error:
            raise refused(f"{self._what} lists without end: a page names itself as the next one") from error
        except (BotoCoreError, ClientError) as error:
            raise self._server.explain_strange(error) from error

    def _describe(self, name: str, entry: Mapping[str, Any]) -> Listed:
        # Of keys like a//b the place differs from the name.
        placed = check_name(name, self._field, f"s3://{self._address.bucket}")
        original = "" if placed == name else name
        return Listed(placed, entry["Size"], f"{entry.get('ETag', '')}{_SEPARATOR}{original}".encode())

    def locate(self, listed: Listed) -> RemoteFile:
        """How to fetch an object."""
        tag, _, original = listed.tag.decode().partition(_SEPARATOR)
        key = f"{self._start}{original or listed.name}"
        md5 = _MD5.fullmatch(tag)
        return RemoteFile(
            name=listed.name,
            address=f"s3://{self._address.bucket}/{key}",
            url=lambda: self._sign(key),
            role=self._server.role,
            version=tag,
            etag=bare_etag(tag),
            size=listed.size,
            # That of an object that was uploaded in parts is no digest of its content. Its checksums cannot be had: a
            # signed address allows no x-amz- header that was not signed with it (x-amz-checksum-mode), and of objects
            # in parts they are mostly one of the parts' sums.
            digest=Digest(algorithm="md5", hex=md5[1]) if md5 else None,
        )

    def _sign(self, key: str) -> str:
        if self._server.is_anonymous:
            return f"{self._server.endpoint}/{self._address.bucket}/{quote(key)}"
        place = {"Bucket": self._address.bucket, "Key": key}
        return str(self._server.client.generate_presigned_url("get_object", Params=place, ExpiresIn=_SIGNED_FOR_S))
