"""A thin client of the API server: paths and plain dicts, with typed errors.

Only ``ApiClient`` of the official client is used. Its generated API and model classes cost 110 MB of memory.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from llava_operator.kube.errors import RetryableError, TooLongError, error_of
from llava_operator.kube.kinds import Kind
from llava_operator.kube.objects import Object

FIRST_CHUNK = 10
"""Objects in the first answer of a list: anybody may store objects of 1.5 MB, and make them ours by a label."""
LAST_CHUNK = 250
"""Most objects in one answer."""
CHUNK_BYTES = 2 * 2**20
"""Bytes that the answers to come are aimed at, by what the objects so far have taken."""
MAX_LIST_BYTES = 16 * 2**20
"""Longest answer to a list that is read; one that is longer is asked for again in smaller pieces."""


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

    async def list(
        self, kind: Kind, namespace: str | None, selector: str = "", *, fields: str = ""
    ) -> AsyncIterator[Object]:
        """Read a collection in chunks, of one namespace or (None) of all.

        Args:
            kind: what to list.
            namespace: where.
            selector: by labels; empty = all.
            fields: by fields; empty = all.

        Raises:
            KubeError: a chunk could not be read; what came before is incomplete.
        """
        token, chunk = "", FIRST_CHUNK
        while True:
            query = {"limit": str(chunk), "labelSelector": selector, "fieldSelector": fields, "continue": token}
            try:
                content = await self._exchange(
                    "GET", kind.path(namespace), query={k: v for k, v in query.items() if v}, max_bytes=MAX_LIST_BYTES
                )
            except TooLongError:
                if chunk == 1:
                    raise
                chunk = max(1, chunk // 5)
                continue
            page = _read_page(kind, content)
            for item in page.items:
                yield item
            if not page.token:
                return
            token = page.token
            chunk = max(1, min(LAST_CHUNK, CHUNK_BYTES * len(page.items) // len(content)))

    async def create(self, kind: Kind, namespace: str | None, body: Object, *, subresource: str = "") -> Object:
        """Create an object.

        Raises:
            AlreadyExistsError: its name is taken.
            InvalidError: fields of it are refused for good.
            KubeError: any other refusal.
        """
        return await self._request("POST", kind.path(namespace, subresource=subresource), body=body)

    async def patch(
        self, kind: Kind, namespace: str | None, name: str, body: Object, *, subresource: str = ""
    ) -> Object:
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

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, *, version: str | None = None) -> Object:
        """Delete the object with this UID, and what it owns first: it is there, marked, until that is gone.

        With ``version`` only that very resourceVersion is deleted.

        Raises:
            NotFoundError: it is not there.
            ConflictError: another object has the name, or it is at another version.
            KubeError: any other refusal.
        """
        body: Object = {
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground",
            "preconditions": {"uid": uid} if version is None else {"uid": uid, "resourceVersion": version},
        }  # fmt: skip
        return await self._request("DELETE", kind.path(namespace, name), body=body)

    async def _request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Object | None = None
    ) -> Object:
        return _read_object(f"{method} {path}", await self._exchange(method, path, query=query, body=body))

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        max_bytes: int | None = None,
    ) -> bytes:
        content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            request = await self._api.param_serialize(
                method, path, query_params=dict(query or {}), header_params=headers, body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            async with asyncio.timeout(self._timeout_s):
                response = await self._api.call_api(*request, _request_timeout=self._timeout_s)
                content = await _read_up_to(response.response, max_bytes)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise RetryableError(f"{method} {path}: {str(error) or 'no answer in time'}") from error
        if not 200 <= response.status <= 299:
            raise error_of(response.status, content, response.headers.get("Retry-After"))
        return content

    async def version(self) -> tuple[int, int] | None:
        """Major and minor version of the API server; None where it does not say.

        Raises:
            KubeError: it could not be asked.
        """
        answer = await self._request("GET", "/version")
        # Distributions write 31+ and the like.
        major, minor = (re.match(r"[0-9]{1,4}", str(answer.get(part, ""))) for part in ("major", "minor"))
        return (int(major[0]), int(minor[0])) if major and minor else None


async def _read_up_to(response: aiohttp.ClientResponse, max_bytes: int | None) -> bytes:
    """The whole body.

    Raises:
        TooLongError: it is longer; the connection is closed.
    """
    if max_bytes is None:
        return await response.read()
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            response.close()
            raise TooLongError(f"an answer of more than {max_bytes} bytes")
    return b"".join(parts)


@dataclass(frozen=True)
class _Page:
    items: list[Object]
    token: str


def _read_page(kind: Kind, content: bytes) -> _Page:
    answer = _read_object(f"list of {kind.plural}", content)
    items, meta = answer.get("items"), answer.get("metadata")
    if not isinstance(items, list) or not isinstance(meta, dict):
        raise RetryableError(f"list of {kind.plural}: the answer is no list")
    return _Page(items=items, token=meta.get("continue") or "")


def _read_object(what: str, content: bytes) -> Object:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        # A proxy's page, for example, while the API server behind it is away.
        raise RetryableError(f"{what}: the answer is no JSON object")
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
