"""Large files to the hub's storage, where nobody sees them until a commit names them.

The protocol is git-lfs' batch API, with the hub's own transfer in parts
(https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md). The hub names signed addresses at its storage: they
get no token, and are not told. What is at the hub already is not sent again. Each part is tried again by itself; across
attempts it is the file that counts, since with each question the hub begins another upload.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import Field

from llava_api.base import Lenient
from llava_trainer.publishing.content import Item, check_item, read_span
from llava_trainer.publishing.destination import Place
from llava_trainer.publishing.exchange import Answer, Body, address_of, exchange, explain
from llava_trainer.publishing.hub_client import HubClient
from llava_trainer.publishing.refusals import refused, unavailable
from llava_trainer.sources.responses import origin_of

_LFS_JSON = "application/vnd.git-lfs+json"
_SHA256 = r"^[0-9a-f]{64}$"
_CHUNK_SIZE = "chunk_size"
_MAX_PARTS = 10_000
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,100}")
_HEADER_VALUE = re.compile(r"[ -~]{0,4096}")


class _Action(Lenient):
    href: str
    header: dict[str, str | int] = Field(default_factory=dict)


class _Actions(Lenient):
    upload: _Action | None = None
    verify: _Action | None = None


class _Object(Lenient):
    oid: Annotated[str, Field(pattern=_SHA256)]
    actions: _Actions | None = None
    error: dict[str, Any] | None = None


class _Batch(Lenient):
    objects: list[_Object]


class LfsStore:
    """The storage of one repository.

    Args:
        place: field and address for messages, the way out, how often something is tried.
        hub: names the addresses.
        branch: that the files are for.
    """

    def __init__(self, place: Place, hub: HubClient, branch: str) -> None:
        self._place = place
        self._hub = hub
        self._branch = branch
        self._scheme = origin_of(hub.endpoint)[0]

    def push(self, item: Item, on_bytes: Callable[[int], None]) -> int:
        """Bring a file to the storage, unless it is there.

        Args:
            item: the file.
            on_bytes: told how much of it stands there.

        Returns:
            Bytes that were sent for it.

        Raises:
            StageError: ResultDamaged, DestinationRefused, DestinationUnavailable or those of sources.
        """
        actions = self._ask_actions(item)
        if actions is None or actions.upload is None:
            on_bytes(item.size)
            return 0
        # Storage may keep under the file's digest whatever comes.
        check_item(item)
        if _CHUNK_SIZE in actions.upload.header:
            self._send_parts(item, actions.upload, on_bytes)
        else:
            headers = {name: str(value) for name, value in actions.upload.header.items()
                       if _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(str(value))}  # fmt: skip
            self._put(actions.upload.href, item, 0, item.size, headers)
            on_bytes(item.size)
        if actions.verify is not None:
            self._hub.post(actions.verify.href, {"oid": item.sha256, "size": item.size}, _LFS_JSON)
        return item.size

    def _ask_actions(self, item: Item) -> _Actions | None:
        asked = {
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
            "ref": {"name": self._branch}, "objects": [{"oid": item.sha256, "size": item.size}],
        }  # fmt: skip
        objects = self._hub.parse(_Batch, self._hub.post(self._hub.batch_url, asked, _LFS_JSON)).objects
        if len(objects) != 1 or objects[0].oid != item.sha256:
            raise self._odd("the hub speaks of other files than it was asked about")
        if (error := objects[0].error) is not None:
            code = error.get("code")
            raise refused(
                f"{self._place.what}: the hub does not take {item.name} of {item.size:,} bytes"
                f"{f' (code {code})' if isinstance(code, int) else ''}: look at the size that it allows, and at the "
                "room that the account has"
            )
        return objects[0].actions

    def _send_parts(self, item: Item, action: _Action, on_bytes: Callable[[int], None]) -> None:
        size = action.header[_CHUNK_SIZE]
        part_bytes = int(size) if re.fullmatch(r"\d{1,15}", str(size)) else 0
        urls = {int(name): str(url) for name, url in action.header.items() if re.fullmatch(r"\d{1,5}", name)}
        num_parts = -(-item.size // part_bytes) if part_bytes else 0
        if sorted(urls) != list(range(1, num_parts + 1)) or not 0 < num_parts <= _MAX_PARTS:
            raise self._odd(f"the hub names addresses for other parts than those of {item.size:,} bytes")
        parts = []
        for number in range(1, num_parts + 1):
            begin = (number - 1) * part_bytes
            end = min(begin + part_bytes, item.size)
            answer = self._put(urls[number], item, begin, end, {})
            tag = answer.headers.get("ETag", "")
            if not _HEADER_VALUE.fullmatch(tag) or not tag:
                raise self._odd("the hub's storage tells no ETag of a part")
            parts.append({"partNumber": number, "etag": tag})
            on_bytes(end)
        headers = {"Content-Type": _LFS_JSON, "Accept": _LFS_JSON}
        listing = Body.of(json.dumps({"oid": item.sha256, "parts": parts}).encode())
        self._ask(item, "POST", action.href, headers, listing)

    def _put(self, url: str, item: Item, begin: int, end: int, headers: dict[str, str]) -> Answer:
        def read() -> Iterator[bytes]:
            return read_span(item, begin, end - begin)

        return self._ask(item, "PUT", url, headers, Body(read=read, size=end - begin))

    def _ask(self, item: Item, method: str, url: str, headers: dict[str, str], body: Body) -> Answer:
        try:
            _, (scheme, _, _) = address_of(url)
        except ValueError:
            raise self._odd("the hub names no address to send files to") from None
        if scheme != self._scheme:
            raise refused(f"{self._place.what}: the hub wants files sent without TLS, which is not done: look at it")
        told = f"{self._place.address} (the hub's storage)"

        def ask() -> Answer:
            answer = exchange(self._place, method, url, headers, body, told=told)
            if answer.status in (200, 201):
                return answer
            if answer.status == 400:
                # Storage may have looked at the digest.
                check_item(item)
            if answer.status in (401, 403):
                # Nothing of the user's: the hub has signed it.
                raise unavailable(
                    f"{self._place.what}: the hub's storage has refused with HTTP {answer.status} what the hub itself "
                    "has signed: the address may have expired, or the node's clock is not the hub's"
                )
            raise explain(self._place, answer, told=told)

        return self._place.repeatedly(ask)

    def _odd(self, told: str) -> Exception:
        return unavailable(f"{self._place.what}: {told}; look at spec.download.hubEndpoint")
