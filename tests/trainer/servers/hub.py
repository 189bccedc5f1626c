"""The routes of the hub that huggingface_hub calls to list and fetch a repository.

Files above ten bytes are "LFS": they are redirected to another host (localhost instead of an address), as the real hub
sends to its CDN.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.trainer.servers.files import Answer, FileServer, Request
from tests.trainer.servers.xet import XetServer

_SMALL = 10


@dataclass(kw_only=True)
class HubRepository:
    """``commits`` from a commit to its files; ``revisions`` from branches and tags to commits."""

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str]
    token: str | None = None
    gated: bool = False
    lies_about: set[str] = field(default_factory=set)
    """Files of which the content is not what the listing says."""


class HubServer(FileServer):
    def __init__(self) -> None:
        super().__init__()
        self.cdn = "localhost"
        """Another name of the server's own address."""
        self.repositories: dict[tuple[str, str], HubRepository] = {}
        self.renamed: dict[str, str] = {}
        """New names of repositories by their old ones."""
        self.page_size = 1000
        self.xet: XetServer | None = None
        """Where files of LFS are kept besides."""
        self.pages_at = ""
        """Address of the server that has a listing's further pages; empty: this one."""

    def answer(self, request: Request) -> Answer:
        for old, new in self.renamed.items():
            if f"/{old}" in request.path:
                return Answer(status=307, headers={"Location": request.path.replace(old, new)})
        if request.path.startswith("/cdn/"):
            is_elsewhere = self.cdn != urlsplit(self.base).hostname
            assert request.authorization is None or not is_elsewhere, "the token went to another host"
            return super().answer(request)
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/(.+)", request.path):
            return self._api(request, *match.groups())
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/xet-read-token/([^/]+)", request.path):
            found = self._find(request, *match.groups()[:2])
            assert self.xet is not None
            return found if isinstance(found, Answer) else Answer(status=200, headers=self.xet.grant())
        if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)", request.path):
            return self._api(request, *match.groups(), "revision", "main")
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path):
            kind, name, commit, path = match.groups()
            return self._resolve(request, "datasets" if kind else "models", name, commit, path)
        return Answer(status=404)

    def _find(self, request: Request, kind: str, name: str) -> HubRepository | Answer:
        repository = self.repositories.get((kind, name))
        sent = (request.authorization or "").removeprefix("Bearer ")
        if repository is None or (repository.token is not None and not sent):
            return Answer(status=401, headers={"X-Error-Message": "Invalid username or password."})
        if repository.gated and sent != repository.token:
            return Answer(status=403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        if repository.token is not None and sent != repository.token:
            return Answer(status=403)
        return repository

    def _api(self, request: Request, kind: str, name: str, what: str, revision: str) -> Answer:
        found = self._find(request, kind, name)
        if isinstance(found, Answer):
            return found
        commit = found.revisions.get(revision, revision)
        if commit not in found.commits:
            return Answer(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            return _json({"id": name, "_id": "x", "sha": commit})
        entries = [_entry(path, content) for path, content in sorted(found.commits[commit].items())]
        for entry, content in zip(entries, (found.commits[commit][str(one["path"])] for one in entries), strict=True):
            if self.xet is not None and "lfs" in entry:
                lies = entry["path"] in found.lies_about
                entry["xetHash"] = self.xet.keep(bytes(len(content)) if lies else content)
        entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": "folder"})
        begin = int(parse_qs(request.query).get("cursor", ["0"])[0])
        end = begin + self.page_size
        page = _json(entries[begin:end])
        if end < len(entries):
            following = f"{self.pages_at or self.base}{request.path}?recursive=True&cursor={end}"
            page.headers["Link"] = f'<{following}>; rel="next"'
        return page

    def _resolve(self, request: Request, kind: str, name: str, commit: str, path: str) -> Answer:
        found = self._find(request, kind, name)
        if isinstance(found, Answer):
            return found
        content = found.commits[commit][path]
        if path in found.lies_about:
            content = bytes(len(content))
        if len(content) <= _SMALL:
            return Answer(status=200, body=content, headers={"ETag": f'"{_blob_id(content)}"'})
        place = f"/cdn/{hashlib.sha256(content).hexdigest()}"
        self.files[place] = content
        port = urlsplit(self.base).port
        return Answer(status=302, headers={"Location": f"https://{self.cdn}:{port}{place}?Signature=secret"})


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "oid": _blob_id(content), "size": len(content), "path": path}
    if len(content) > _SMALL:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _json(value: object) -> Answer:
    return Answer(status=200, body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})
