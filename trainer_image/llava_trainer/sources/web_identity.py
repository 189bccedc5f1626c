"""Keys of S3 by the pod's own identity: a token that the platform puts into it, changed for keys that soon expire.

A cloud's webhook, or whoever mounts such a token, sets AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE (IRSA and its
likes). boto3 changes the token and renews the keys before they expire; the requests go out as all others do. Only the
variables named here are read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleWithWebIdentityCredentialFetcher,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError
from botocore.session import Session
from botocore.utils import FileWebIdentityTokenLoader

from llava_api.text import show
from llava_trainer.errors import StageError
from llava_trainer.retrying import TransientError
from llava_trainer.sources.refusals import refused, unavailable
from llava_trainer.sources.responses import read_bounded

_ROLE, _TOKEN_FILE = "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"
ACCOUNT_FIELD = "spec.scheduling.serviceAccountName"
_TRIES = 4
_TRANSIENT_STATUS = 429


@dataclass(frozen=True, kw_only=True)
class WebIdentity:
    """Who the pod is to a cloud, and where that is asked."""

    role: str
    token_file: Path
    session_name: str
    region: str | None = None
    endpoint: str | None = None
    """Of S3; None: the region's."""
    sts_endpoint: str | None = None
    """Where the token is changed; None: the region's."""


def read_web_identity(environ: Mapping[str, str]) -> WebIdentity | None:
    """The pod's identity as the platform has put it into the environment; None if it has none."""
    role, token_file = environ.get(_ROLE), environ.get(_TOKEN_FILE)
    if not role or not token_file:
        return None
    common = environ.get("AWS_ENDPOINT_URL")
    return WebIdentity(
        role=role,
        token_file=Path(token_file),
        session_name=environ.get("AWS_ROLE_SESSION_NAME") or "llava-finetune",
        region=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or None,
        endpoint=environ.get("AWS_ENDPOINT_URL_S3") or common or None,
        sts_endpoint=environ.get("AWS_ENDPOINT_URL_STS") or common or None,
    )


def provide_keys(session: Session, identity: WebIdentity, region: str, way_out: httpx.Client, field: str) -> None:
    """Have a session's clients sign with the keys of an identity.

    Args:
        session: boto3's, which looks up nothing by itself.
        identity: whose keys.
        region: where the token is changed, unless the identity says where.
        way_out: takes the token to where it is changed.
        field: the source's field, for messages.
    """

    def create_client(service: str, config: Config) -> Any:
        again = Config(retries={"mode": "standard", "total_max_attempts": _TRIES})
        client = session.create_client(
            service, region_name=region, endpoint_url=identity.sts_endpoint, config=config.merge(again)
        )
        client.meta.events.register(f"before-send.{service}", lambda request, **_: _send(request, way_out))
        return client

    fetcher = AssumeRoleWithWebIdentityCredentialFetcher(
        client_creator=create_client,
        web_identity_token_loader=FileWebIdentityTokenLoader(str(identity.token_file)),
        role_arn=identity.role,
        extra_args={"RoleSessionName": identity.session_name},
    )

    def fetch() -> Any:
        try:
            return fetcher.fetch_credentials()
        except (OSError, UnicodeDecodeError, BotoCoreError, ClientError) as error:
            raise _explain(error, identity, field) from error

    session.register_component("credential_provider", CredentialResolver(providers=[_Provider(fetch)]))


class _Provider:
    """The one place that a session gets keys from, as botocore's ``CredentialProvider`` (which has no types)."""

    METHOD = CANONICAL_NAME = "assume-role-with-web-identity"

    def __init__(self, fetch: Callable[[], Any]) -> None:
        self._fetch = fetch

    def load(self) -> DeferredRefreshableCredentials:
        return DeferredRefreshableCredentials(refresh_using=self._fetch, method=self.METHOD)


def _send(request: Any, way_out: httpx.Client) -> AWSResponse:
    """Errors of the way out are told as boto3's own, which it tries again."""
    headers = {name: value.decode() if isinstance(value, bytes) else str(value)
               for name, value in request.headers.items()}  # fmt: skip
    try:
        with way_out.stream(request.method, request.url, headers=headers, content=request.body) as response:
            content = read_bounded(response)
    except (httpx.RequestError, TransientError) as error:
        raise EndpointConnectionError(endpoint_url=request.url, error=error) from error
    body = SimpleNamespace(stream=lambda: [content])
    return AWSResponse(request.url, response.status_code, dict(response.headers), body)


def _explain(error: Exception, identity: WebIdentity, field: str) -> StageError:
    told = f"{field}: the pod's identity could not be changed for keys of role {show(identity.role, max_chars=200)}"
    if isinstance(error, OSError | UnicodeDecodeError):
        why = getattr(error, "strerror", None) or type(error).__name__
        return refused(
            f"{told}: {identity.token_file} ({_TOKEN_FILE}) cannot be read ({why}): look at the ServiceAccount of "
            f"{ACCOUNT_FIELD}"
        )
    status = _status_of(error)
    if status is None or status == _TRANSIENT_STATUS or status >= 500:
        return unavailable(f"{told}: {show(error, max_chars=300)}")
    return refused(
        f"{told}: {show(error, max_chars=300)}: correct the role of the ServiceAccount in {ACCOUNT_FIELD}, or whom the "
        "role trusts"
    )


def _status_of(error: Exception) -> int | None:
    """HTTP status of a refusal; None where there was no answer."""
    if not isinstance(error, ClientError):
        return None
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
