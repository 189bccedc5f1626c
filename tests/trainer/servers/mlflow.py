"""A real tracking server of MLflow, from PyPI, in an environment of its own: what it needs does not go with ours."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.localcluster.paths import cache_root
from tests.ports import free_port

_LOCKED = Path(__file__).with_name("mlflow.txt")
"""MLflow and all that it needs (`echo mlflow==VERSION | uv pip compile - --universal --generate-hashes`)."""
_ENVIRONMENT = cache_root() / f"mlflow-{hashlib.sha256(_LOCKED.read_bytes()).hexdigest()[:16]}"
_UV = Path(__file__).parents[3] / ".venv-uv" / "bin" / "uv"
_DEADLINE_S = 120


def install() -> Path:
    """Its interpreter; skips where it cannot be installed, which in CI is an error."""
    python = _ENVIRONMENT / "bin" / "python"
    if not (_ENVIRONMENT / ".ready").exists():
        try:
            subprocess.run([_UV, "venv", "-q", "--clear", "--python", sys.executable, _ENVIRONMENT], check=True)
            install = [_UV, "pip", "install", "-q", "--python", python, "--require-hashes", "-r", _LOCKED]
            subprocess.run(install, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"MLflow's server cannot be installed: {error}")
        (_ENVIRONMENT / ".ready").touch()
    return python


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A server with an empty store in ``folder``; its address."""
    python, port = install(), free_port()
    folder.mkdir(exist_ok=True)
    url = f"http://127.0.0.1:{port}"
    command = [
        python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/store.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            _await(url, process, folder / "log")
            yield url
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", trust_env=False, timeout=30).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise AssertionError(log.read_text(errors="replace")[-2000:])
