"""The real kubectl, as the demo and the tests call it."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
POLL_S = 0.5


class KubectlError(Exception):
    """kubectl ended with an error; the message holds what it printed."""


class DeadlineExceeded(Exception):
    """Something that was waited for did not come."""


def wait_for(what: str, condition: Callable[[], T | None], *, timeout_s: float, poll_s: float = POLL_S) -> T:
    """The first result of ``condition`` that is neither None nor False.

    Raises:
        DeadlineExceeded: after ``timeout_s`` seconds; names ``what`` and the last error.
    """
    deadline = time.monotonic() + timeout_s
    trouble = ""
    while True:
        try:
            result = condition()
        except KubectlError as error:
            result, trouble = None, f"; the last error: {error}"
        if result is not None and result is not False:
            return result
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"waited {timeout_s:.0f} s in vain for {what}{trouble}")
        time.sleep(poll_s)


@dataclass(frozen=True, kw_only=True)
class Kubectl:
    """kubectl for one cluster and one namespace."""

    binary: Path
    kubeconfig: Path | None = None
    """None: kubectl's own rules (KUBECONFIG, ~/.kube/config)."""
    context: str | None = None
    namespace: str = "default"

    @property
    def cluster_arguments(self) -> list[str]:
        """What tells kubectl which cluster is meant."""
        arguments = ["--kubeconfig", str(self.kubeconfig)] if self.kubeconfig else []
        return [*arguments, "--context", self.context] if self.context else arguments

    def command(self, *arguments: str) -> list[str]:
        """The whole command line."""
        return [str(self.binary), *self.cluster_arguments, "--namespace", self.namespace, *arguments]

    def run(self, *arguments: str, stdin: bytes | None = None, timeout_s: float = 60) -> str:
        """Run kubectl and return what it printed.

        Raises:
            KubectlError: it failed, or took longer than ``timeout_s``.
        """
        try:
            done = subprocess.run(
                self.command(*arguments), input=stdin, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {' '.join(arguments)} took more than {timeout_s:.0f} s") from error
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them."""
        found: dict[str, Any] = json.loads(self.run("get", *arguments, "-o", "json"))
        return found

    def list(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of a list."""
        items: list[dict[str, Any]] = self.get(*arguments)["items"]
        return items

    def exists(self, kind: str, name: str) -> bool:
        """Whether the object is there."""
        return bool(self.run("get", kind, name, "--ignore-not-found", "-o", "name").strip())

    def apply(self, *objects: dict[str, Any]) -> str:
        """Apply plain objects; returns what kubectl said."""
        # Documents of their own: in a List kubectl checks the fields itself, instead of asking the API server.
        body = "\n---\n".join(json.dumps(one) for one in objects)
        return self.run("apply", "-f", "-", stdin=body.encode())
