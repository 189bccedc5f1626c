"""Carries folders into claims and out of them, through a small pod that mounts the claim.

It works on any cluster that a person can reach with kubectl, which copying into a node's folder would not.
"""

import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.kubectl import Kubectl, KubectlError, wait_for

MOUNT = "/volume"
_READY_TIMEOUT_S = 180
_TRANSFER_TIMEOUT_S = 900


def claim(name: str, size: str, storage_class: str | None = None) -> dict[str, Any]:
    """A claim that pods on every node can write to."""
    spec: dict[str, Any] = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def pack(folders: dict[str, Path], target: IO[bytes]) -> None:
    """Write a tar archive of folders, each under the path that is its key.

    What may not be written where it comes from may be written where it goes: else nobody could ever replace it.
    """

    def writable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mode |= stat.S_IRWXU if entry.isdir() else stat.S_IRUSR | stat.S_IWUSR
        return entry

    with tarfile.open(fileobj=target, mode="w") as tar:
        for path, folder in folders.items():
            tar.add(folder, arcname=path, filter=writable)


@dataclass(frozen=True, kw_only=True)
class Courier:
    """Carries to and from the claims of one namespace."""

    kubectl: Kubectl
    image: str
    """Any image with python3 and tar."""

    def put(self, folders: dict[str, Path], claim_name: str) -> None:
        """Copy folders into the claim, each under the path that is its key, instead of what lay there.

        Raises:
            KubectlError: the pod did not start, or did not take what it was sent.
        """
        with tempfile.TemporaryFile() as packed:
            pack(folders, packed)
            packed.seek(0)
            with self._pod(claim_name, read_only=False) as pod:
                self.kubectl.run("exec", pod, "--", "rm", "-rf", *(f"{MOUNT}/{path}" for path in folders))
                self._tar(pod, "-i", "-xf", "-", "-C", MOUNT, source=packed)

    def fetch(self, claim_name: str, path: str, folder: Path) -> None:
        """Copy what lies in ``path`` of the claim into ``folder``.

        Raises:
            KubectlError: the pod did not start, or there is no such path.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as packed:
            with self._pod(claim_name, read_only=True) as pod:
                self._tar(pod, None, "-cf", "-", "-C", f"{MOUNT}/{path}", ".", target=packed)
            packed.seek(0)
            subprocess.run(["tar", "-xf", "-", "-C", str(folder)], stdin=packed, check=True)

    def _tar(
        self,
        pod: str,
        option: str | None,
        *arguments: str,
        source: IO[bytes] | None = None,
        target: IO[bytes] | None = None,
    ) -> None:
        command = self.kubectl.command("exec", *([option] if option else []), pod, "--", "tar", *arguments)
        done = subprocess.run(
            command,
            stdin=source or subprocess.DEVNULL,
            stdout=target or subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_TRANSFER_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise KubectlError(f"tar in pod {pod}: {done.stderr.decode(errors='replace').strip()}")

    @contextmanager
    def _pod(self, claim_name: str, *, read_only: bool) -> Iterator[str]:
        name = f"courier-{claim_name}"[:63].rstrip("-")
        self.kubectl.run("delete", "pod", name, "--ignore-not-found", "--wait=true", timeout_s=_READY_TIMEOUT_S)
        self.kubectl.apply(self._manifest(name, claim_name, read_only))
        try:
            wait_for(f"pod {name} to run", lambda: self._is_running(name), timeout_s=_READY_TIMEOUT_S)
            yield name
        finally:
            self.kubectl.run("delete", "pod", name, "--wait=false", "--grace-period=0", "--ignore-not-found")

    def _is_running(self, name: str) -> bool:
        return bool(self.kubectl.get("pod", name)["status"].get("phase") == "Running")

    def _manifest(self, name: str, claim_name: str, read_only: bool) -> dict[str, Any]:
        container = {
            "name": "courier",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", "import time; time.sleep(1800)"],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "volume", "mountPath": MOUNT, "readOnly": read_only}],
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "fsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [container],
                "volumes": [
                    {"name": "volume", "persistentVolumeClaim": {"claimName": claim_name, "readOnly": read_only}}
                ],
            },
        }
