"""A hub that is written to: what of its API makes repositories, takes files and commits, and hands them out again.

By the routes of https://huggingface.co/spaces/huggingface/openapi and git-lfs' batch API. It speaks plain HTTP: TLS is
the relay's (``relay``) that stands before it. Its storage has another name (localhost instead of the address), as the
real one's has, and asserts that no token comes there. That it is a hub is for huggingface_hub's own client to say: the
tests have it upload to it and download from it.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.trainer.servers.running import run_server

_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
_REPOSITORY = r"(?P<name>[^/]+/[^/]+)"


@dataclass
class Commit:
    files: dict[str, bytes]
    parent: str | None
    summary: str = ""


@dataclass
class Stored:
    """A repository."""

    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Of LFS, by their SHA-256, whether a commit names them or not."""
    is_private: bool = False

    def commit(self, branch: str, files: dict[str, bytes], summary: str = "") -> str:
        oid = secrets.token_hex(20)
        self.commits[oid] = Commit(dict(files), self.branches.get(branch), summary)
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """What people see; what the hub itself has put there aside."""
        found = dict(self.commits[self.branches[branch]].files) if branch in self.branches else {}
        found.pop(".gitattributes", None)
        return found

    def log(self, branch: str = "main") -> list[str]:
        """Messages of the commits, the newest first."""
        told, oid = [], self.branches.get(branch)
        while oid is not None:
            told.append(self.commits[oid].summary)
            oid = self.commits[oid].parent
        return told


class _Error(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class WritableHub:
    """``tokens`` say which may write."""

    def __init__(self) -> None:
        self.tokens: dict[str, bool] = {}
        self.repositories: dict[str, Stored] = {}
        self.part_bytes: int | None = None
        """Larger files go in parts of this size."""
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.ignored: set[str] = set()
        self.before_commit: list[Any] = []
        """Each is called once, before a commit is looked at."""
        self.commits_at_storage: list[str] = []
        self.base = ""
        self.lock = threading.RLock()

    @contextmanager
    def run(self) -> Iterator[Self]:
        outer = self

        class Handler(_Handler):
            hub = outer

        with run_server(Handler) as self.base:
            yield self


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: WritableHub

    def _serve(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        with self.hub.lock:
            try:
                for method, pattern, answer in _ROUTES:
                    if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, parts.path)):
                        groups = {key: unquote(value) for key, value in match.groupdict().items()}
                        answer(self, body, **groups)
                        return
                raise _Error(404)
            except _Error as error:
                told = {"X-Error-Code": error.code, "X-Error-Message": str(error)} if error.code else {}
                self.answer(error.status, json.dumps({"error": str(error)}).encode(), told)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def give(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def outside(self, host: str) -> str:
        """The relay's address under one of its names."""
        scheme = self.headers.get("X-Forwarded-Proto", "http")
        return f"{scheme}://{host}:{self.headers['Host'].rpartition(':')[2]}"

    # --- who asks

    def may_write(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise _Error(401, message="Invalid username or password.")
        if not self.hub.tokens[token]:
            raise _Error(403, message="Forbidden: you must use a write token")

    def stored(self, name: str) -> Stored:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise _Error(401, message="Invalid username or password.")
        found = self.hub.repositories.get(name)
        if found is None or (found.is_private and not token):
            # The hub does not tell who asks without a token whether there is one.
            raise _Error(404 if token else 401, "RepoNotFound", "Repository not found")
        return found

    def at(self, stored: Stored, revision: str) -> str:
        oid = stored.find(revision)
        if oid is None:
            raise _Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid

    # --- repositories

    def create(self, body: bytes) -> None:
        self.may_write()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            raise _Error(409, message="You already created this model repo")
        private = asked.get("private") or asked.get("visibility") == "private"
        stored = self.hub.repositories[name] = Stored(is_private=bool(private))
        stored.commit("main", {".gitattributes": _ATTRIBUTES}, "initial commit")
        self.give({"url": f"{self.outside('127.0.0.1')}/{name}"})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        self.may_write()
        stored = self.stored(name)
        if branch in stored.branches:
            raise _Error(409, message="Reference already exists")
        stored.branches[branch] = self.at(stored, json.loads(body or b"{}").get("startingPoint", "main"))
        self.give({})

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        stored = self.stored(name)
        oid = self.at(stored, revision)
        siblings = [{"rfilename": path} for path in stored.commits[oid].files]
        self.give({"_id": "x", "id": name, "sha": oid, "private": stored.is_private, "siblings": siblings})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        stored = self.stored(name)
        oid = self.at(stored, revision)
        self.give([_entry(path, content) for path, content in sorted(stored.commits[oid].files.items())])

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        stored = self.stored(name)
        oid = self.at(stored, revision)
        content = stored.commits[oid].files.get(path)
        if content is None:
            raise _Error(404, "EntryNotFound")
        told = {"X-Repo-Commit": oid, "ETag": f'"{_blob_id(content)}"'}
        if not _is_large(path):
            self.answer(200, content, told)
            return
        digest = hashlib.sha256(content).hexdigest()
        told |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        location = f"{self.outside('localhost')}/storage/{name}/{digest}?Signature={self.sign(digest)}"
        self.answer(302, b"", {**told, "Location": location})

    def validate(self, body: bytes) -> None:
        self.give({"errors": [], "warnings": []})

    # --- files

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self.may_write()
        self.at(self.stored(name), revision)
        self.give({
            "files": [
                {
                    "path": one["path"], "uploadMode": "lfs" if _is_large(one["path"]) else "regular",
                    "shouldIgnore": one["path"] in self.hub.ignored,
                }
                for one in json.loads(body)["files"] if base64.b64decode(one["sample"]) is not None
            ],
        })  # fmt: skip

    def batch(self, body: bytes, name: str) -> None:
        self.may_write()
        stored, asked = self.stored(name), json.loads(body)
        assert asked["operation"] == "upload"
        assert self.headers["Content-Type"].startswith("application/vnd.git-lfs+json")
        self.give({"transfer": "basic", "objects": [self._offer(name, stored, one) for one in asked["objects"]]})

    def _offer(self, name: str, stored: Stored, asked: dict[str, Any]) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        if oid in stored.objects:
            return {"oid": oid, "size": size}
        storage = f"{self.outside('localhost')}/storage/{name}/{oid}"
        verify = {"href": f"{self.outside('127.0.0.1')}/{name}.git/info/lfs/objects/verify"}
        part_bytes = self.hub.part_bytes
        if part_bytes is None or size <= part_bytes:
            upload: dict[str, Any] = {"href": f"{storage}?Signature={self.sign(oid)}"}
        else:
            upload_id = secrets.token_hex(8)
            self.hub.uploads[upload_id] = {}
            parts = {
                str(number): f"{storage}?uploadId={upload_id}&partNumber={number}&Signature={self.sign(oid)}"
                for number in range(1, -(-size // part_bytes) + 1)
            }
            complete = f"{self.outside('127.0.0.1')}/api/complete_multipart/{name}"
            href = f"{complete}?uploadId={upload_id}&sig={self.sign(oid)}"
            upload = {"href": href, "header": {"chunk_size": str(part_bytes), **parts}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def sign(self, oid: str) -> str:
        return f"signed-{oid[:8]}"

    def put(self, body: bytes, name: str, oid: str) -> None:
        assert "Authorization" not in self.headers, "the token went to the storage"
        if self.query.get("Signature") != self.sign(oid):
            raise _Error(403)
        if "uploadId" in self.query:
            parts = self.hub.uploads.get(self.query["uploadId"])
            if parts is None:
                raise _Error(404)
            parts[int(self.query["partNumber"])] = body
            self.answer(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
            return
        self._keep(name, oid, body)
        self.answer(200)

    def _keep(self, name: str, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Error(400, message="BadDigest")
        self.hub.repositories[name].objects[oid] = content

    def get_object(self, body: bytes, name: str, oid: str) -> None:
        assert "Authorization" not in self.headers, "the token went to the storage"
        self.answer(200, self.hub.repositories[name].objects[oid])

    def complete(self, body: bytes, name: str) -> None:
        asked = json.loads(body)
        parts = self.hub.uploads.get(self.query["uploadId"])
        if parts is None or self.query["sig"] != self.sign(asked["oid"]):
            raise _Error(404)
        told = {one["partNumber"]: one["etag"] for one in asked["parts"]}
        if told != {number: f'"{hashlib.md5(part).hexdigest()}"' for number, part in parts.items()}:
            raise _Error(400, message="InvalidPart")
        self._keep(name, asked["oid"], b"".join(parts[number] for number in sorted(parts)))
        self.give({"success": True})

    def verify(self, body: bytes, name: str) -> None:
        self.may_write()
        asked = json.loads(body)
        if len(self.stored(name).objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Error(404)
        self.give({})

    def commit(self, body: bytes, name: str, branch: str) -> None:
        self.may_write()
        stored = self.stored(name)
        if self.hub.before_commit:
            self.hub.before_commit.pop(0)()
        if branch not in stored.branches:
            raise _Error(404, "RevisionNotFound")
        assert self.headers["Content-Type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in body.splitlines()]
        assert lines[0]["key"] == "header"
        header = lines[0]["value"]
        if header.get("parentCommit", stored.branches[branch]) != stored.branches[branch]:
            raise _Error(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(stored.commits[stored.branches[branch]].files)
        for line in lines[1:]:
            self._apply(stored, files, line["key"], line["value"])
        if files == stored.commits[stored.branches[branch]].files:
            raise _Error(400, message="No files have been modified since last commit.")
        oid = stored.commit(branch, files, header["summary"])
        self.give({"success": True, "commitOid": oid, "commitUrl": f"{self.outside('127.0.0.1')}/{name}/commit/{oid}"})

    def _apply(self, stored: Stored, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            assert value["encoding"] == "base64"
            if _is_large(value["path"]):
                raise _Error(400, message="Your push was rejected because it contains large files without LFS")
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            assert value["algo"] == "sha256"
            if value["oid"] not in stored.objects:
                raise _Error(400, message="Your push was rejected because an LFS pointer pointed to a file not there")
            files[value["path"]] = stored.objects[value["oid"]]
        elif key == "deletedFile":
            if value["path"] not in files:
                raise _Error(404, "EntryNotFound")
            del files[value["path"]]
        else:
            raise _Error(400, message=f"unknown operation {key}")


_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_REPOSITORY}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("GET", f"/api/models/{_REPOSITORY}", _Handler.info),
    ("GET", f"/api/models/{_REPOSITORY}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", f"/api/models/{_REPOSITORY}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("POST", f"/api/models/{_REPOSITORY}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", f"/api/models/{_REPOSITORY}/commit/(?P<branch>[^/]+)", _Handler.commit),
    ("POST", f"/api/complete_multipart/{_REPOSITORY}", _Handler.complete),
    ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    ("POST", r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/verify", _Handler.verify),
    ("PUT", f"/storage/{_REPOSITORY}/(?P<oid>[0-9a-f]+)", _Handler.put),
    ("GET", f"/storage/{_REPOSITORY}/(?P<oid>[0-9a-f]+)", _Handler.get_object),
    ("GET", f"/{_REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
)


def _is_large(path: str) -> bool:
    """As the .gitattributes has it that the hub puts into a new repository."""
    return path.endswith(".safetensors")


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "oid": _blob_id(content), "size": len(content), "path": path}
    if _is_large(path):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
