"""A client of S3: boto3 signs and reads answers, our own client sends.

So proxies, authorities and limits exist once, and keys' signatures go to the endpoint and nowhere else. A Secret
without accessKeyId asks anonymously, as public buckets allow; without a Secret the pod asks as who it is to its cloud
(``web_identity``). Nothing else is read from the environment, and nothing from files of AWS's tools or a cloud's
metadata service.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
import httpx
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config

from llava_api.text import show
from llava_trainer.errors import StageError
from llava_trainer.sources.credentials import Credentials
from llava_trainer.sources.network import SENDING
from llava_trainer.sources.refusals import READING, Access, refused, secret_field, unavailable
from llava_trainer.sources.responses import explain_answer, explain_transport, origin_of, read_bounded
from llava_trainer.sources.web_identity import ACCOUNT_FIELD, WebIdentity, provide_keys

DEFAULT_REGION = "us-east-1"
_PIECE_BYTES = 256 << 10
# What botocore would otherwise look up in the environment and in ~/.aws.
_NOTHING = (None, None, None, None)
_LOOKED_UP = ("profile", "region", "config_file", "credentials_file", "ca_bundle", "data_path")

Ask = Callable[[], AWSResponse]


class S3:
    """The server that a bucket lies on.

    Args:
        told: the bucket's address, for messages.
        credentials: keys, endpoint and region, as far as the Secret has them.
        way_out: the client that sends (``network``).
        field: the field of the address, for messages.
        identity: who the pod is, where no Secret says as whom to ask.
        access: what it is asked for.
        send: sends one signed request: again where it may, if each is to be tried again by itself.
        is_left_to_caller: statuses of refusals that boto3 raises as ClientError instead of a StageError.

    Raises:
        StageError: SourceRefused, if the endpoint is no address.
    """

    def __init__(
        self, told: str, credentials: Credentials, way_out: httpx.Client, field: str, *,
        identity: WebIdentity | None = None, access: Access = READING,
        send: Callable[[Ask], AWSResponse] = lambda ask: ask(), is_left_to_caller: frozenset[int] = frozenset(),
    ) -> None:  # fmt: skip
        self._told = told
        self._field = field
        self._way_out = way_out
        self._access = access
        self._do_send = send
        self._is_left_to_caller = is_left_to_caller
        self._role = identity.role if identity else None
        self._place = (
            f"AWS_ENDPOINT_URL_S3 (or AWS_REGION) in the pod, of the ServiceAccount in {ACCOUNT_FIELD}"
            if identity
            else f"key endpoint (or region) of {secret_field(field)}"
        )
        self.is_anonymous = credentials.access_key_id is None and identity is None
        region = credentials.region or (identity and identity.region) or DEFAULT_REGION
        endpoint = credentials.endpoint or (identity and identity.endpoint)
        self.endpoint = (endpoint or f"https://s3.{region}.amazonaws.com").rstrip("/")
        try:
            self._origin = origin_of(self.endpoint)
        except ValueError as error:
            place = f"{secret_field(field)}: key endpoint of the Secret"
            where = "AWS_ENDPOINT_URL_S3 in the pod" if identity else place
            raise refused(
                f"{where} must be an address like https://minio.storage.svc:9000, without credentials and query"
            ) from error
        core = botocore.session.Session(session_vars=dict.fromkeys(_LOOKED_UP, _NOTHING))
        if identity is not None:
            provide_keys(core, identity, region, way_out, field)
        signature = UNSIGNED if self.is_anonymous else "s3v4"
        self.client = _build_client(core, self.endpoint, region, credentials, signature)
        """boto3's."""
        self.client.meta.events.register("before-send.s3", self._send)

    @property
    def role(self) -> str | None:
        """As which it is asked by the pod's own identity; None where a Secret says as whom, or nobody does."""
        return self._role

    def explain_strange(self, error: Exception) -> StageError:
        """What boto3 cannot read. Its texts hold the answer, which may hold what was sent."""
        return unavailable(
            f"{self._field}: {self._told}: {self.endpoint} does not answer as S3 does "
            f"({type(error).__name__}); look at {self._place}"
        )

    def _send(self, request: Any, **_: Any) -> AWSResponse:
        """Send what boto3 has signed; it carries keys' signature and the session token."""
        if origin_of(request.url) != self._origin:
            host = show(urlsplit(request.url).netloc, max_chars=100)
            raise refused(
                f"{self._field}: {self._told}: {self.endpoint} sends on to {host}, where the keys are not sent: if "
                f"the bucket is there, set {self._place}"
            )
        headers = {name: value.decode() if isinstance(value, bytes) else str(value)
                   for name, value in request.headers.items() if name.lower() != "expect"}  # fmt: skip
        where = f"{self._told} at {self.endpoint}"
        # What boto3 makes of bytes is read once, and may have to be sent again.
        body = request.body.read() if hasattr(request.body, "read") else request.body
        timeout = SENDING if request.method in ("PUT", "POST") else httpx.USE_CLIENT_DEFAULT

        def ask() -> AWSResponse:
            try:
                content = _cut_up(body) if body else None
                with self._way_out.stream(
                    request.method, request.url, headers=headers, content=content, timeout=timeout
                ) as answer:
                    status = answer.status_code
                    if not 200 <= status < 300 and status not in self._is_left_to_caller:
                        raise explain_answer(answer, self._field, where, role=self._role, access=self._access)
                    # To HEAD the headers tell of a body that does not come.
                    told = b"" if request.method == "HEAD" else read_bounded(answer)
            except httpx.RequestError as error:
                # Its text may hold what was sent.
                raise explain_transport(error, self._field, where) from None
            return AWSResponse(request.url, status, dict(answer.headers), SimpleNamespace(stream=lambda: [told]))

        try:
            return self._do_send(ask)
        finally:
            # boto3, tenacity and httpx leave circles, which the collector sees late: parts would pile up.
            body = None
            if hasattr(request.body, "close"):
                request.body.close()


def _cut_up(body: bytes) -> Iterator[bytes]:
    """The body in pieces, so that nothing holds on to it when it is sent."""
    for begin in range(0, len(body), _PIECE_BYTES):
        yield body[begin : begin + _PIECE_BYTES]


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
            # The signature covers what is sent, which every server checks; checksums of its own boto3 adds only where
            # S3 asks for them, since other servers do not know them all.
            s3={"addressing_style": "path", "payload_signing_enabled": True},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            use_fips_endpoint=False,
            use_dualstack_endpoint=False,
        ),
    )
