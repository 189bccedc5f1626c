"""The few requests that the cluster itself sends to its API server, with the standard library alone."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from tests.localcluster.errors import ClusterError
from tests.localcluster.pki import Authority


@dataclass(frozen=True)
class ApiClient:
    """Requests with the administrator's certificate; `context` trusts the instance's authority alone."""

    url: str
    context: ssl.SSLContext

    def request(self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = 10) -> Any:
        """The decoded answer, or its text when it is not JSON.

        Raises urllib.error.HTTPError for a refusal and OSError when there is no connection.
        """
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Accept", "application/json")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        # The proxy that a machine may use for the internet is not meant for this address.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.context)
        )
        with opener.open(request, timeout=timeout_s) as response:
            text = response.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def create(self, path: str, body: dict[str, Any]) -> None:
        """POST an object; that it exists already is fine. Raises ClusterError when it is refused."""
        try:
            self.request("POST", path, body)
        except urllib.error.HTTPError as error:
            if error.code != 409:
                answer = error.read().decode(errors="replace")
                name = body.get("metadata", {}).get("name")
                raise ClusterError(f"creating {body['kind']} {name!r} failed ({error.code}): {answer}") from error

    def why_not_ready(self) -> str | None:
        """None once the API server is ready, otherwise what it said."""
        try:
            self.request("GET", "/readyz", timeout_s=3)
        except urllib.error.HTTPError as error:
            return f"/readyz says {error.code}"
        except OSError as error:
            return str(error)
        return None

    def why_node_not_ready(self, name: str) -> str | None:
        """None once the node is Ready, otherwise what its condition says."""
        try:
            node = self.request("GET", f"/api/v1/nodes/{name}")
        except urllib.error.HTTPError as error:
            return "it has not registered" if error.code == 404 else f"reading it failed ({error.code})"
        except OSError as error:
            return str(error)
        ready = [item for item in node["status"].get("conditions", []) if item["type"] == "Ready"]
        if not ready:
            return "it has no Ready condition"
        return None if ready[0]["status"] == "True" else str(ready[0]["message"])


def connect(api_url: str, authority: Authority) -> ApiClient:
    """A client for the instance's API server."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(str(authority.certificate_of("admin")), str(authority.key_of("admin")))
    return ApiClient(api_url, context)
