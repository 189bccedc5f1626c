"""Publishing to a bucket or a claim, here or in a process that may be killed."""

import functools
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_trainer.errors import StageError
from llava_trainer.publishing.bucket import BucketDestination
from llava_trainer.publishing.claim import ClaimDestination
from llava_trainer.publishing.content import Content
from llava_trainer.publishing.destination import Destination, Sent
from llava_trainer.publishing.refusals import told_of_destinations
from llava_trainer.retrying import Patience
from tests.trainer.places import make_place, write_secret
from tests.trainer.servers.versity import KEYS

PART_BYTES = 5 << 20
"""The least that S3 takes."""
FILES = {
    "model.safetensors": random.Random(0).randbytes(PART_BYTES + 1000),
    "config.json": b'{"model_type": "llava"}' * 9,
}
"""Weights in two parts; each file has more than 150 bytes, after which connections are cut."""
ONCE = Patience(tries=1)


def write_s3_secret(root: Path, endpoint: str, **more: str) -> None:
    """The Secret of the server's own keys."""
    keys = {"accessKeyId": KEYS["access_key_id"], "secretAccessKey": KEYS["secret_access_key"]}
    write_secret(root, endpoint=endpoint, **(keys | more))


def publish(
    content: Content, address: str, root: Path, *, on_bytes: Callable[[int], None] = lambda done: None,
    patience: Patience = ONCE, environ: dict[str, str] | None = None, **more: Any,
) -> Sent:  # fmt: skip
    """Publish as the stage does, to a bucket (in parts of PART_BYTES) or a claim below ``root/claims``."""
    with told_of_destinations():
        place = replace(make_place(address, root, patience=patience, **more), environ=environ or {})
        with place.client:
            is_bucket = address.startswith("s3://")
            made: Destination = (
                BucketDestination(place, part_bytes=PART_BYTES) if is_bucket else ClaimDestination(place)
            )
            return made.publish(content, on_bytes)


def publish_and_exit(content: Content, address: str, root: Path, kill_at: int | None, more: dict[str, Any]) -> None:
    """The same as a process' work, which has its process killed before the change of a disk of that number."""
    if kill_at is not None:
        _kill_at_change(kill_at)
    try:
        publish(content, address, root, **more)
    except StageError:
        os._exit(1)


def _kill_at_change(number: int) -> None:
    count = 0

    def kill_before(change: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(change)
        def counted(*given: Any, **named: Any) -> Any:
            nonlocal count
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return change(*given, **named)

        return counted

    for name in ("mkdir", "rename", "fsync", "unlink", "rmdir", "fchmod"):
        setattr(os, name, kill_before(getattr(os, name)))
