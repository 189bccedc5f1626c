"""A thin client of the API server: paths and plain dicts, with typed errors.

Only ``ApiClient`` of the official client is used. Its generated API and model classes cost 110 MB of memory.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config
from pydantic import BaseModel, ValidationError

from llava_api.text import show
from llava_operator.wire import Object

CHUNK = 250
"""Objects in one answer of a list."""
MAX_TEXT = 4096
"""Longest message that is kept of a refusal: webhooks write them, too."""
LAST_RETRY_AFTER_S = 300.0
"""Longest wait that an answer may ask for."""


@dataclass(frozen=True)
class Kind:
    """A kind of objects: where it is served."""

    api: str
    """``api/v1`` or ``apis/GROUP/VERSION``."""
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """Path of one object, of a namespace's collection, or of the whole cluster's.

        Raises:
            ValueError: namespace or name would lead to another path: an empty name to the whole collection.
        """
        scope = ["namespaces", _segment(namespace)] if namespace is not None else []
        one = [_segment(name)] if name is not None else []
        return "/" + "/".join(filter(None, [self.api, *scope, self.plural, *one, subresource]))


def _segment(name: str) -> str:
    if name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no name of an object or of a namespace")
    return quote(name, safe="")


class KubeError(Exception):
    """The API server refused, or could not be reached (``status`` 0)."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class RetryableError(KubeError):
    """The same request may succeed later: timeout, overload, server error, expired credentials."""


class ConflictError(KubeError):
    """The object changed since it was read: the pass that read it is void."""


class AlreadyExistsError(KubeError):
    """An object of this name is there already."""


class NotFoundError(KubeError):
    """There is no such object."""


class ForbiddenError(KubeError):
    """Authorisation or an admission plug-in refused; the message says which. Both may think otherwise tomorrow."""


class RefusedError(KubeError):
    """Refused, and nothing says that it is for good: by an admission policy (422) or a webhook (400), for example."""


class InvalidError(KubeError):
    """Fields of the object itself are refused, by the API server's own validation: it will never be accepted."""


def error_of(status: int, body: bytes, retry_after: str | None) -> KubeError:
    """The typed error of an answer that is none of 2xx."""
    try:
        answer = _Refusal.model_validate_json(body)
    except ValidationError:
        # A proxy before the API server may answer with anything.
        answer = _Refusal(message=body[:256].decode(errors="replace"))
    message = show(answer.message or f"the API server answered {status}", max_chars=MAX_TEXT)
    after = None
    if retry_after and retry_after.isascii() and retry_after.isdecimal():
        after = min(LAST_RETRY_AFTER_S, float(retry_after))
    return _error_type(status, answer)(message, status=status, reason=answer.reason, retry_after_s=after)


class _Cause(BaseModel):
    field: str | None = None


class _Details(BaseModel):
    causes: list[_Cause] | None = None


class _Refusal(BaseModel):
    """What is used of Kubernetes' ``Status``."""

    reason: str = ""
    message: str = ""
    details: _Details | None = None

    @property
    def names_fields(self) -> bool:
        """Whether there are causes, and each names a field."""
        causes = (self.details and self.details.causes) or []
        return bool(causes) and all(cause.field for cause in causes)


def _error_type(status: int, answer: _Refusal) -> type[KubeError]:
    if status == 409:
        return AlreadyExistsError if answer.reason == "AlreadyExists" else ConflictError
    if status in (401, 408, 429) or status >= 500:
        return RetryableError
    if status == 422 and answer.names_fields:
        return InvalidError
    return {403: ForbiddenError, 404: NotFoundError}.get(status, RefusedError)


class Kube:
    """Requests to one API server. Every request ends within ``timeout_s``."""

    def __init__(self, api: ApiClient, *, timeout_s: float) -> None:
        self._api = api
        self._timeout_s = timeout_s

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Read one object from the API server itself, not from a cache.

        Raises:
            NotFoundError: it is not there.
            KubeError: any other refusal.
        """
        return await self._request("GET", kind.path(namespace, name))

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> AsyncIterator[Object]:
        """Read a collection in chunks, of one namespace or (None) of all.

        Raises:
            KubeError: a chunk could not be read; what came before is incomplete.
        """
        token = ""
        while True:
            query = {"limit": str(CHUNK), "labelSelector": selector, "continue": token}
            answer = await self._request("GET", kind.path(namespace), query={k: v for k, v in query.items() if v})
            for item in answer["items"]:
                yield item
            token = answer["metadata"].get("continue", "")
            if not token:
                return

    async def create(self, kind: Kind, namespace: str | None, body: Object, *, subresource: str = "") -> Object:
        """Create an object.

        Raises:
            AlreadyExistsError: its name is taken.
                InvalidError: fields of it are refused for good.
            KubeError: any other refusal.
        """
        return await self._request("POST", kind.path(namespace, subresource=subresource), body=body)

    async def patch(self, kind: Kind, namespace: str, name: str, body: Object, *, subresource: str = "") -> Object:
        """Apply a JSON merge patch; with ``metadata.resourceVersion`` in it only to that very version.

        Raises:
            ConflictError: the object is at another version.
            KubeError: any other refusal.
        """
        return await self._request("PATCH", kind.path(namespace, name, subresource), body=body)

    async def replace(self, kind: Kind, namespace: str, name: str, body: Object) -> Object:
        """Replace an object; with ``metadata.resourceVersion`` in it only that very version.

        Raises:
            ConflictError: the object is at another version.
            KubeError: any other refusal.
        """
        return await self._request("PUT", kind.path(namespace, name), body=body)

    async def _request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Object | None = None
    ) -> Object:
        content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            request = await self._api.param_serialize(
                method, path, query_params=dict(query or {}), header_params=headers, body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            async with asyncio.timeout(self._timeout_s):
                response = await self._api.call_api(*request, _request_timeout=self._timeout_s)
                content = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise RetryableError(f"{method} {path}: {str(error) or 'no answer in time'}") from error
        if not 200 <= response.status <= 299:
            raise error_of(response.status, content, response.headers.get("Retry-After"))
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            # A proxy's page, for example, while the API server behind it is away.
            raise RetryableError(f"{method} {path}: the answer {response.status} is no JSON object")
        return answer

    async def version(self) -> tuple[int, int] | None:
        """Major and minor version of the API server; None where it does not say.

        Raises:
            KubeError: it could not be asked.
        """
        answer = await self._request("GET", "/version")
        # Distributions write 31+ and the like.
        major, minor = (re.match(r"[0-9]{1,4}", str(answer.get(part, ""))) for part in ("major", "minor"))
        return (int(major[0]), int(minor[0])) if major and minor else None


async def connect(*, user_agent: str) -> ApiClient:
    """A client with the credentials of KUBECONFIG where that is set, else of the pod's service account."""
    configuration = Configuration()
    if kubeconfig := os.environ.get("KUBECONFIG"):
        await load_kube_config(config_file=kubeconfig, client_configuration=configuration, persist_config=False)
    else:
        load_incluster_config(client_configuration=configuration)
    client = ApiClient(configuration)
    client.user_agent = user_agent
    return client
