"""Folders of S3 buckets.

boto3 lists and signs; the files themselves come as everything else does, so that they resume and are checked in one
way. A Secret without accessKeyId asks anonymously, as public buckets allow; without a Secret the pod asks as who it is
to its cloud (``web_identity``). Nothing else is read from the environment, and nothing from files of AWS's tools or a
cloud's metadata service.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import botocore.session
import httpx
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from llava_api.text import show
from llava_trainer.sources.address import BucketAddress
from llava_trainer.sources.credentials import Credentials
from llava_trainer.sources.exchange import explain_transport, origin_of, parse_wait_s, read_bounded
from llava_trainer.sources.refusals import TransientError, explain_failure, refused, secret_field
from llava_trainer.sources.remote import Digest, Listed, RemoteFile, bare_etag, check_name
from llava_trainer.sources.retrying import Retrier
from llava_trainer.sources.web_identity import WebIdentity, provide_keys

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
        identity: who the pod is, where no Secret says as whom to ask.

    Raises:
        StageError: SourceRefused, if the endpoint is no address.
    """

    def __init__(
        self, address: BucketAddress, credentials: Credentials, client: httpx.Client, field: str, *,
        identity: WebIdentity | None = None,
    ) -> None:  # fmt: skip
        self._address = address
        self._is_anonymous = credentials.access_key_id is None and identity is None
        self._field = field
        region = credentials.region or (identity and identity.region) or DEFAULT_REGION
        endpoint = credentials.endpoint or (identity and identity.endpoint)
        self._endpoint = (endpoint or f"https://s3.{region}.amazonaws.com").rstrip("/")
        try:
            self._origin = origin_of(self._endpoint)
        except ValueError as error:
            raise refused(
                f"{secret_field(field)}: key endpoint of the Secret must be an address like "
                "https://minio.storage.svc:9000, without credentials and query"
            ) from error
        self._http = client
        core = botocore.session.Session(session_vars=dict.fromkeys(_LOOKED_UP, _NOTHING))
        if identity is not None:
            provide_keys(core, identity, region, functools.partial(_send_on, client), field)
        signature = UNSIGNED if self._is_anonymous else "s3v4"
        self._client = _build_client(core, self._endpoint, region, credentials, signature)
        self._client.meta.events.register("before-send.s3", self._send)

    def list_files(self, repeatedly: Retrier, is_wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Listed]:
        """The objects below the prefix, named relative to it. A page that fails is asked for again by itself.

        Raises:
            StageError: SourceRefused or SourceUnavailable, naming field, address and fix.
        """
        place = f"s3://{self._address.bucket}"
        for entry in self._list(repeatedly, self._start):
            name = entry["Key"].removeprefix(self._start)
            if not name or name.endswith("/") or not is_wanted(name):
                continue
            # Of keys like a//b the place differs from the name.
            placed = check_name(name, self._field, place)
            original = "" if placed == name else name
            yield Listed(placed, entry["Size"], f"{entry.get('ETag', '')}{_SEPARATOR}{original}".encode())

    def locate(self, listed: Listed) -> RemoteFile:
        """How to fetch an object."""
        tag, _, original = listed.tag.decode().partition(_SEPARATOR)
        key = f"{self._start}{original or listed.name}"
        md5 = _MD5.fullmatch(tag)
        return RemoteFile(
            name=listed.name,
            address=f"s3://{self._address.bucket}/{key}",
            url=lambda: self._sign(key),
            version=tag,
            etag=bare_etag(tag),
            size=listed.size,
            # That of an object that was uploaded in parts is no digest of its content. Its checksums cannot be had: a
            # signed address allows no x-amz- header that was not signed with it (x-amz-checksum-mode), and of objects
            # in parts they are mostly one of the parts' sums.
            digest=Digest(algorithm="md5", hex=md5[1]) if md5 else None,
        )

    def _list(self, repeatedly: Retrier, start: str) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            page = repeatedly(functools.partial(self._ask_page, start, token))
            yield from page.get("Contents", ())
            previous, token = token, page.get("NextContinuationToken")
            if not page.get("IsTruncated"):
                return
            if not token or token == previous:
                raise refused(f"{self._field}: {self._told} lists without end: the server's pages do not go on")

    def _ask_page(self, start: str, token: str | None) -> dict[str, Any]:
        following = {} if token is None else {"ContinuationToken": token}
        try:
            page: dict[str, Any] = self._client.list_objects_v2(Bucket=self._address.bucket, Prefix=start, **following)
        except (BotoCoreError, ClientError) as error:
            raise self._explain(error) from None
        except httpx.RequestError as error:
            raise explain_transport(error, self._field, f"{self._told} at {self._endpoint}") from error
        return page

    def _sign(self, key: str) -> str:
        if self._is_anonymous:
            return f"{self._endpoint}/{self._address.bucket}/{quote(key)}"
        place = {"Bucket": self._address.bucket, "Key": key}
        return str(self._client.generate_presigned_url("get_object", Params=place, ExpiresIn=_SIGNED_FOR_S))

    @property
    def _start(self) -> str:
        return f"{self._address.prefix}/" if self._address.prefix else ""

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        """Send what boto3 has signed by our own client: proxies, authorities and limits exist once.

        The request carries keys' signature and the session token: it goes to the endpoint and nowhere else.
        """
        if origin_of(request.url) != self._origin:
            host = show(urlsplit(request.url).netloc, max_chars=100)
            raise refused(
                f"{self._field}: {self._told}: {self._endpoint} sends on to {host}, where the keys are not sent: if "
                f"the bucket is there, set key endpoint (or region) of {secret_field(self._field)}"
            )
        return _send_on(self._http, request)

    @property
    def _told(self) -> str:
        return f"s3://{self._address.bucket}/{self._address.prefix}".rstrip("/")

    def _explain(self, error: BotoCoreError | ClientError) -> Exception:
        where = f"{self._told} at {self._endpoint}"
        if not isinstance(error, ClientError):
            return TransientError(f"{self._endpoint}: {show(error, max_chars=300)}")
        told = error.response.get("ResponseMetadata", {})
        status = int(told.get("HTTPStatusCode", 0))
        code = show(error.response.get("Error", {}).get("Code", ""), max_chars=60)
        wait_s = parse_wait_s(told.get("HTTPHeaders", {}))
        return explain_failure(status, self._field, where, code="" if code == str(status) else code, wait_s=wait_s)


class _Content:
    """A body, as boto3 reads it."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self._content


def _send_on(client: httpx.Client, request: Any) -> AWSResponse:
    headers = _plain_headers(request.headers)
    with client.stream(request.method, request.url, headers=headers, content=request.body) as response:
        content = read_bounded(response)
    return AWSResponse(request.url, response.status_code, dict(response.headers), _Content(content))


def _plain_headers(headers: Any) -> list[tuple[str, str]]:
    return [(name, value.decode() if isinstance(value, bytes) else str(value)) for name, value in headers.items()]


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
