"""versitygw, an S3 server on a folder of this machine."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.ports import free_port

KEYS = {"access_key_id": "VERSITYKEYID", "secret_access_key": "VERSITYSECRETKEY"}
BUCKET = "models"
_STARTS_WITHIN_S = 20


@contextmanager
def run_versity(program: Path, *options: str, before: Sequence[str] = ()) -> Iterator[str]:
    """The endpoint, by plain HTTP, of a server with one empty bucket.

    Args:
        program: versitygw.
        options: of its store.
        before: a command that runs the server's, in another mount namespace, say; ``{folder}`` in it is where the
            server keeps everything.
    """
    # In memory, where there is such a place: the server syncs each file.
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="versitygw-", dir=memory if memory.is_dir() else None))
    port = free_port()
    objects, metadata = folder / "objects", folder / "metadata"
    for one in (objects, metadata):
        one.mkdir(parents=True, exist_ok=True)
    first = [one.format(folder=folder) for one in before]
    keys = ["--access", KEYS["access_key_id"], "--secret", KEYS["secret_access_key"]]
    store = ["posix", "--sidecar", str(metadata), *options, str(objects)]
    command = [*first, str(program), "--port", f"127.0.0.1:{port}", *keys, "--quiet", *store]
    try:
        with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
            try:
                _wait_for(port, server)
                endpoint = f"http://127.0.0.1:{port}"
                open_client(endpoint).create_bucket(Bucket=BUCKET)
                yield endpoint
            finally:
                server.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def open_client(endpoint: str) -> Any:
    """A client that looks and puts directly."""
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(s3={"addressing_style": "path"}),
        aws_access_key_id=KEYS["access_key_id"], aws_secret_access_key=KEYS["secret_access_key"],
    )  # fmt: skip


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + _STARTS_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "versitygw has ended: see its log"
            assert time.monotonic() < ends_at, "versitygw does not listen"
            time.sleep(0.02)
