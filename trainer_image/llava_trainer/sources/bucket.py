"""Folders of S3 buckets.

boto3 lists and signs; the files themselves come as everything else does, so that they resume and are checked in one
way. A Secret without accessKeyId asks anonymously, as public buckets allow; without a Secret the pod asks as who it is
to its cloud (``web_identity``). Nothing else is read from the environment, and nothing from files of AWS's tools or a
cloud's metadata service.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import botocore.session
import httpx
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, PaginationError

from llava_api.text import show
from llava_trainer.retrying import Retrier
from llava_trainer.sources.address import BucketAddress
from llava_trainer.sources.credentials import Credentials
from llava_trainer.sources.refusals import refused, secret_field, unavailable
from llava_trainer.sources.remote import Digest, Listed, RemoteFile, bare_etag, check_name
from llava_trainer.sources.responses import explain_answer, explain_transport, origin_of, read_bounded
from llava_trainer.sources.web_identity import ACCOUNT_FIELD, WebIdentity, provide_keys

DEFAULT_REGION = "us-east-1"
_SEPARATOR = "\0"
"""Of an ETag and a key, neither of which can hold it."""
_SIGNED_FOR_S = 3600
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
# What botocore would otherwise look up in the environment and in ~/.aws.
_NOTHING = (None, None, None, None)
_LOOKED_UP = ("profile", "region", "config_file", "credentials_file", "ca_bundle", "data_path")


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
        self._is_anonymous = credentials.access_key_id is None and identity is None
        self._role = identity.role if identity else None
        self._field = field
        self._place = (
            f"AWS_ENDPOINT_URL_S3 (or AWS_REGION) in the pod, of the ServiceAccount in {ACCOUNT_FIELD}"
            if identity
            else f"key endpoint (or region) of {secret_field(field)}"
        )
        self._told = f"s3://{address.bucket}/{address.prefix}".rstrip("/")
        self._what = f"{field}: {self._told}"
        self._start = f"{address.prefix}/" if address.prefix else ""
        region = credentials.region or (identity and identity.region) or DEFAULT_REGION
        endpoint = credentials.endpoint or (identity and identity.endpoint)
        self._endpoint = (endpoint or f"https://s3.{region}.amazonaws.com").rstrip("/")
        try:
            self._origin = origin_of(self._endpoint)
        except ValueError as error:
            place = f"{secret_field(field)}: key endpoint of the Secret"
            where = "AWS_ENDPOINT_URL_S3 in the pod" if identity else place
            raise refused(
                f"{where} must be an address like https://minio.storage.svc:9000, without credentials and query"
            ) from error
        self._http = client
        self._repeatedly = repeatedly
        core = botocore.session.Session(session_vars=dict.fromkeys(_LOOKED_UP, _NOTHING))
        if identity is not None:
            provide_keys(core, identity, region, client, field)
        signature = UNSIGNED if self._is_anonymous else "s3v4"
        self._client = _build_client(core, self._endpoint, region, credentials, signature)
        self._client.meta.events.register("before-send.s3", self._send)

    def list_files(self, is_wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Listed]:
        """The objects below the prefix, named relative to it.

        Raises:
            StageError: SourceRefused or SourceUnavailable, naming field, address and fix.
        """
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._address.bucket, Prefix=self._start)
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
            # Their texts hold the answer, which may hold what was sent.
            raise unavailable(
                f"{self._what}: {self._endpoint} does not answer as S3 does "
                f"({type(error).__name__}); look at {self._place}"
            ) from error

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
            role=self._role,
            version=tag,
            etag=bare_etag(tag),
            size=listed.size,
            # That of an object that was uploaded in parts is no digest of its content. Its checksums cannot be had: a
            # signed address allows no x-amz- header that was not signed with it (x-amz-checksum-mode), and of objects
            # in parts they are mostly one of the parts' sums.
            digest=Digest(algorithm="md5", hex=md5[1]) if md5 else None,
        )

    def _sign(self, key: str) -> str:
        if self._is_anonymous:
            return f"{self._endpoint}/{self._address.bucket}/{quote(key)}"
        place = {"Bucket": self._address.bucket, "Key": key}
        return str(self._client.generate_presigned_url("get_object", Params=place, ExpiresIn=_SIGNED_FOR_S))

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        """Send what boto3 has signed by our own client, and again by itself: proxies, authorities, limits exist once.

        The request carries keys' signature and the session token: it goes to the endpoint and nowhere else.
        """
        if origin_of(request.url) != self._origin:
            host = show(urlsplit(request.url).netloc, max_chars=100)
            raise refused(
                f"{self._what}: {self._endpoint} sends on to {host}, where the keys are not sent: if "
                f"the bucket is there, set {self._place}"
            )
        headers = {name: value.decode() if isinstance(value, bytes) else str(value)
                   for name, value in request.headers.items()}  # fmt: skip
        where = f"{self._told} at {self._endpoint}"

        def ask() -> AWSResponse:
            try:
                with self._http.stream(request.method, request.url, headers=headers) as response:
                    if response.status_code != 200:
                        raise explain_answer(response, self._field, where, role=self._role)
                    content = read_bounded(response)
            except httpx.RequestError as error:
                raise explain_transport(error, self._field, where) from error
            return AWSResponse(request.url, 200, dict(response.headers), SimpleNamespace(stream=lambda: [content]))

        return self._repeatedly(ask)


def _build_client(
    core: botocore.session.Session, endpoint: str, region: str, credentials: Credentials, signature: Any
) -> Any:
    return boto3.session.Session(botocore_session=core).client(
        "s3",
        region_name=region,
        endpoint_url=endpoint,
        aws_access_key_id=credentials.access_key_id,
        aws_secret_access_key=credentials.secret_access_key,
        aws_session_token=credentials.session_token,
        config=Config(
            signature_version=signature,
            # Trying again is this package's own business: one place, one limit.
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            use_fips_endpoint=False,
            use_dualstack_endpoint=False,
        ),
    )
