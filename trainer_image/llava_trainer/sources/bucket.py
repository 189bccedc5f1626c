"""Folders of S3 buckets.

obstore lists and signs; the files themselves come as everything else does, so that they resume and are checked in one
way. A Secret without accessKeyId asks anonymously, as public buckets allow.
"""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import certifi
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from llava_trainer.sources.address import BucketAddress
from llava_trainer.sources.credentials import Credentials
from llava_trainer.sources.network import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Network, choose_proxy
from llava_trainer.sources.refusals import TransientError, explain_status, refused, secret_field, unavailable
from llava_trainer.sources.remote import Digest, RemoteFile, bare_etag, check_name

DEFAULT_REGION = "us-east-1"
_SIGNED_FOR = timedelta(hours=1)
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_STATUS = re.compile(r"returned non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")


class Bucket:
    """One folder of a bucket.

    Args:
        address: bucket and prefix.
        credentials: keys, endpoint and region, as far as the Secret has them.
        network: proxies and authorities.
        field: the source's field, for messages.

    Raises:
        StageError: SourceRefused, if the endpoint is no address.
    """

    def __init__(self, address: BucketAddress, credentials: Credentials, network: Network, field: str) -> None:
        self._address = address
        self._credentials = credentials
        self._field = field
        self._region = credentials.region or DEFAULT_REGION
        endpoint = credentials.endpoint or f"https://s3.{self._region}.amazonaws.com"
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise refused(
                f"{secret_field(field)}: key endpoint of the Secret must be an address like "
                "https://minio.storage.svc:9000, without credentials"
            )
        self._endpoint = endpoint.rstrip("/")
        self._store = S3Store(
            address.bucket,
            endpoint=self._endpoint,
            region=self._region,
            virtual_hosted_style_request=False,
            client_options=_client_options(network, parts.scheme, parts.hostname, parts.port),
            # Trying again is this package's own business: one place, one limit.
            retry_config={"max_retries": 0},
            **_keys(credentials),
        )

    def list_files(self, is_wanted: Callable[[str], bool] = lambda name: True) -> dict[str, RemoteFile]:
        """The objects below the prefix, by their name relative to it.

        Raises:
            StageError: SourceRefused, naming field, address and fix.
            TransientError: another try may help.
        """
        try:
            return {file.name: file for file in self._list(is_wanted)}
        except (BaseError, FileNotFoundError, PermissionError) as error:
            raise self._explain(error) from None

    def _list(self, is_wanted: Callable[[str], bool]) -> Iterator[RemoteFile]:
        place = f"s3://{self._address.bucket}"
        start = f"{self._address.prefix}/" if self._address.prefix else ""
        for batch in obstore.list(self._store, prefix=self._address.prefix or None):
            for entry in batch:
                key = entry["path"]
                name = key.removeprefix(start)
                if not name or name.endswith("/") or not is_wanted(name):
                    continue
                tag = entry["e_tag"] or ""
                md5 = _MD5.fullmatch(tag)
                yield RemoteFile(
                    name=check_name(name, self._field, place),
                    address=f"{place}/{key}",
                    url=self._locate(key),
                    version=tag,
                    etag=bare_etag(tag),
                    size=entry["size"],
                    # That of an object that was uploaded in parts is no digest of its content. Its checksums cannot be
                    # had: obstore's listing and metadata have none, and a signed address allows no x-amz- header that
                    # was not signed with it (x-amz-checksum-mode).
                    digest=Digest(algorithm="md5", hex=md5[1]) if md5 else None,
                )

    def _locate(self, key: str) -> Callable[[], str]:
        if self._credentials.access_key_id is None:
            return lambda: f"{self._endpoint}/{self._address.bucket}/{quote(key)}"
        return lambda: obstore.sign(self._store, "GET", key, _SIGNED_FOR)

    def _explain(self, error: Exception) -> Exception:
        told = f"s3://{self._address.bucket}/{self._address.prefix}".rstrip("/")
        text = str(error)
        code = (_CODE.search(text) or [None, ""])[1]
        status = int((_STATUS.search(text) or [0, 0])[1])
        if code in ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"):
            return refused(
                f"{self._field}: {told} is not in region {self._region}: set key region of {secret_field(self._field)}"
            )
        if status and status < 500 and status not in (408, 425, 429):
            return explain_status(status, self._field, f"{told} at {self._endpoint}{f' ({code})' if code else ''}")
        if "UnknownIssuer" in text or "invalid peer certificate" in text:
            return unavailable(
                f"{self._field}: {told}: the certificate of {self._endpoint} is not trusted; put its authority into "
                "the ConfigMap that spec.download.caConfigMap names"
            )
        if isinstance(error, FileNotFoundError):
            return explain_status(404, self._field, told)
        if isinstance(error, PermissionError):
            return explain_status(403, self._field, told)
        return TransientError(f"{self._endpoint}: {f'HTTP {status}' if status else _first_line(text)}")


def _client_options(network: Network, scheme: str, host: str, port: int | None) -> Any:
    options: dict[str, Any] = {
        "allow_http": scheme == "http",
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        # The whole of one answer; a listing comes in pages.
        "timeout": timedelta(minutes=5),
        "root_certificate": certifi.contents() + (network.ca_pem or ""),
    }
    proxy = network.https_proxy if scheme == "https" else network.http_proxy
    if proxy is not None:
        options["proxy_url"] = proxy if "://" in proxy else f"http://{proxy}"
        if choose_proxy(network, scheme, host, port or {"http": 80, "https": 443}[scheme]) is None:
            # Said to it, because left to itself it would read the environment.
            options["proxy_excludes"] = host
    return options


def _keys(credentials: Credentials) -> dict[str, Any]:
    if credentials.access_key_id is None:
        return {"skip_signature": True}
    keys = {
        "access_key_id": credentials.access_key_id,
        "secret_access_key": credentials.secret_access_key,
        "session_token": credentials.session_token,
    }
    return {name: value for name, value in keys.items() if value is not None}


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:300]
