"""What Weights & Biases' client needs of a server, kept in memory: runs, the lines of their history, and who has asked.

Their server cannot be had as a package, so that this stands in its place; the client is the real one, and `wandb sync`.
"""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.trainer.servers.authority import Authority


@dataclass
class Service:
    """What it has been told."""

    url: str = ""
    steps_claimed: int | None = None
    """Number of the last step that it says every run has; None: it tells the truth."""
    broken: bool = False
    """Whether it answers everything with 500."""
    refusal: int | None = None
    """Status that it answers everything with, and the credential back."""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of each run, by its id."""
    files: dict[str, str] = field(default_factory=dict)
    credentials: set[str] = field(default_factory=set)
    num_requests: int = 0
    bodies: list[str] = field(default_factory=list)

    def answer(self, path: str, body: str) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            return self._stream(path.split("/")[4], json.loads(body))
        if path.startswith("/upload/"):
            self.files[path.removeprefix("/upload/")] = body
            return {}
        asked = json.loads(body)
        values, query = asked.get("variables", {}), asked["query"]
        project = {"id": "cHJvamVjdA==", "name": values.get("project"), "entity": {"id": "dXM=", "name": "us"}}
        if "upsertBucket" in query:
            bucket = {"id": "cnVu", "name": values["name"], "displayName": values["name"], "project": project}
            bucket["historyLineCount"] = len(self.history.get(values["name"], ()))
            return {"upsertBucket": {"bucket": bucket, "inserted": values["name"] not in self.history}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": "cnVu", "uploadHeaders": [], "files": files}}
        if "bucket(" in query:
            return {"model": {**project, "bucket": self._bucket(values["name"])}}
        if "viewer" in query:
            return {"viewer": {"id": "bWU=", "entity": "us", "username": "us", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _bucket(self, name: str) -> dict[str, Any] | None:
        rows = self.history.get(name, [])
        if self.steps_claimed is not None:
            rows = [{"_step": self.steps_claimed}]
        if not rows:
            return None
        tail = json.dumps([json.dumps(rows[-1])])
        return {
            "id": "cnVu", "name": name, "displayName": name, "summaryMetrics": "{}", "config": "{}", "tags": [],
            "historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0, "historyTail": tail,
            "eventsTail": "[]", "notes": None, "wandbConfig": '{"t": {}}',
        }  # fmt: skip

    def _stream(self, name: str, told: dict[str, Any]) -> dict[str, Any]:
        lines = told.get("files", {}).get("wandb-history.jsonl")
        if lines is not None:
            rows = self.history.setdefault(name, [])
            # A stream says where its lines go: what another upload has put there is replaced.
            rows[lines["offset"] :] = [json.loads(line) for line in lines["content"]]
        return {}


@contextmanager
def serve(authority: Authority | None = None) -> Iterator[Service]:
    """As long as the context; by TLS where an authority vouches for it."""
    service = Service()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            service.num_requests += 1
            service.bodies.append(body)
            if given := self.headers.get("Authorization"):
                service.credentials.add(given)
            status = 500 if service.broken else service.refusal or 200
            found = service.answer(self.path, body) if status == 200 else {"SAID": given}
            content = json.dumps({"data": found} if self.path == "/graphql" else found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_PUT = do_POST

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients may leave."""

    server = Server(("127.0.0.1", 0), Handler)
    if authority is not None:
        server.socket = authority.server_context.wrap_socket(server.socket, server_side=True)
    service.url = f"http{'' if authority is None else 's'}://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
