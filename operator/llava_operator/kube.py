"""A thin client of the API server: paths and plain dicts, with typed errors.

Only ``ApiClient`` of the official client is used. Its generated API and model classes cost 110 MB of memory.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from llava_operator.wire import Object

CHUNK = 250
"""Objects in one answer of a list."""


@dataclass(frozen=True)
class Kind:
    """A kind of objects: where it is served."""

    api: str
    """``api/v1`` or ``apis/GROUP/VERSION``."""
    plural: str

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """Path of one object, of a namespace's collection, or of the whole cluster's."""
        scope = ["namespaces", namespace] if namespace is not None else []
        return "/" + "/".join(filter(None, [self.api, *scope, self.plural, name, subresource]))


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
    """Authorisation or an admission plug-in refused; the message says which."""


class InvalidError(KubeError):
    """The object itself is refused; the same request will never succeed."""


def error_of(status: int, body: bytes, retry_after: str | None) -> KubeError:
    """The typed error of an answer that is none of 2xx."""
    try:
        answer = json.loads(body)
        reason, message = str(answer.get("reason", "")), str(answer.get("message", ""))
    except (ValueError, AttributeError):
        # A proxy before the API server may answer with anything.
        reason, message = "", body[:256].decode(errors="replace")
    message = message or f"the API server answered {status}"
    after = float(retry_after) if retry_after and retry_after.isdigit() else None
    return _error_type(status, reason)(message, status=status, reason=reason, retry_after_s=after)


def _error_type(status: int, reason: str) -> type[KubeError]:
    if status == 409:
        return AlreadyExistsError if reason == "AlreadyExists" else ConflictError
    if status in (401, 408, 429) or status >= 500:
        return RetryableError
    return {403: ForbiddenError, 404: NotFoundError}.get(status, InvalidError)


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
            InvalidError: it is refused for what it is.
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
        answer: Object = json.loads(content)
        return answer


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
