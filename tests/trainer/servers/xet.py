"""Content-addressed storage as Xet's client reads it: files in blocks (xorbs) of chunks that are not compressed.

https://huggingface.co/docs/xet/main/api.md, https://huggingface.co/docs/xet/main/xorb.md
"""

import hashlib
import json
import re
import time

from tests.trainer.servers.files import Answer, FileServer, Request

TOKEN = "xet_short_lived"
_CHUNK_BYTES = 64 << 10
BLOCK_BYTES = 4 << 20
"""Of a real one 64 MB at most."""


class XetServer(FileServer):
    """Files by a hash: real ones are Merkle hashes, which the client does not check when it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, bytes] = {}
        self.endpoint = ""
        """What the hub says that this server's address is; empty: its own."""

        self.blocks_at = ""
        """Where blocks are; empty: here."""

    def keep(self, content: bytes) -> str:
        key = hashlib.sha256(b"xet" + content).hexdigest()
        self.kept[key] = content
        return key

    def grant(self) -> dict[str, str]:
        """Headers by which the hub tells where files are, and with which token."""
        return {
            "X-Xet-Cas-Url": self.endpoint or self.base, "X-Xet-Access-Token": TOKEN,
            "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
        }  # fmt: skip

    def answer(self, request: Request) -> Answer:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range or "")
        if asked is None:
            return Answer(status=404)
        first, last = int(asked[1]), int(asked[2])
        if match := re.fullmatch(r"/blocks/(\w+)/(\d+)", request.path):
            block = _pack(self._block(match[1], int(match[2])))
            return Answer(status=206, body=block[first : last + 1])
        match = re.fullmatch(r"/v1/reconstructions/(\w+)", request.path)
        if match is None or match[1] not in self.kept:
            return Answer(status=404)
        if request.authorization != f"Bearer {TOKEN}":
            return Answer(status=403)
        return Answer(
            status=200, body=json.dumps(self._plan(match[1], first, last)).encode(),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip

    def _block(self, key: str, number: int) -> bytes:
        return self.kept[key][number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]

    def _plan(self, key: str, first: int, last: int) -> dict[str, object]:
        """The blocks of a part of a file, whole ones."""
        last = min(last, len(self.kept[key]) - 1)
        terms, places = [], {}
        for number in range(first // BLOCK_BYTES, last // BLOCK_BYTES + 1):
            block = self._block(key, number)
            name = hashlib.sha256(f"{key}/{number}".encode()).hexdigest()
            chunks = {"start": 0, "end": -(-len(block) // _CHUNK_BYTES)}
            terms.append({"hash": name, "unpacked_length": len(block), "range": chunks})
            url = f"{self.blocks_at or self.base}/blocks/{key}/{number}?Signature=secret"
            places[name] = [{"range": chunks, "url": url, "url_range": {"start": 0, "end": len(_pack(block)) - 1}}]
        return {"offset_into_first_range": first % BLOCK_BYTES, "terms": terms, "fetch_info": places}


def _pack(content: bytes) -> bytes:
    """Chunks of a file, each behind its header: version, length, no compression, length."""
    chunks = [content[at : at + _CHUNK_BYTES] for at in range(0, len(content), _CHUNK_BYTES)]
    return b"".join(
        b"\0" + len(chunk).to_bytes(3, "little") + b"\0" + len(chunk).to_bytes(3, "little") + chunk for chunk in chunks
    )
