"""Contents to publish without a model that anybody trained, and publishing them in a process that may be killed."""

import hashlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from llava_api.failures import Reason
from llava_api.run_config import RunIdentity
from llava_trainer.errors import StageError
from llava_trainer.publishing.bucket import BucketDestination
from llava_trainer.publishing.claim import ClaimDestination
from llava_trainer.publishing.content import PUBLICATION, Content, Item, order_items
from llava_trainer.publishing.destination import Destination, Place, Sent
from llava_trainer.publishing.publication import describe_publication
from llava_trainer.publishing.refusals import told_of_destinations
from llava_trainer.retrying import Patience, Retrier
from llava_trainer.sources.network import Network, build_client
from tests.trainer.servers.versity import KEYS

FIELD = "spec.publish.destinations[1].address"
MEBIBYTE = 1 << 20
PART_BYTES = 5 * MEBIBYTE
"""The least that S3 takes."""
UID = "0c6f-uid"
SIZES = {"model.safetensors": PART_BYTES + 1000, "config.json": 300}


def make_content(folder: Path, sizes: dict[str, int] | None = None, seed: int = 0) -> Content:
    """Files with random bytes below ``folder``, and their publication.json."""
    generator = random.Random(seed)
    items = []
    for name, size in (sizes or SIZES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(generator.randbytes(size))
        items.append(make_item(folder, name))
    run = RunIdentity.model_validate(
        {"namespace": "team-a", "name": "trays", "uid": UID, "stage": "publish", "attempt": 1}
    )
    (folder / PUBLICATION).write_text(describe_publication(run, "merged", items))
    return Content(what="merged", items=order_items([*items, make_item(folder, PUBLICATION)]))


def make_item(folder: Path, name: str) -> Item:
    content = (folder / name).read_bytes()
    return Item(name=name, path=folder / name, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_secret(folder: Path, **keys: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in keys.items():
        (folder / key).write_text(value)
    return folder


def write_s3_secret(folder: Path, endpoint: str) -> Path:
    return write_secret(
        folder, accessKeyId=KEYS["access_key_id"], secretAccessKey=KEYS["secret_access_key"], endpoint=endpoint
    )


def publish(
    content: Content, address: str, *, secrets: Path = Path("/nowhere"), claims: Path = Path("/nowhere"), tries: int = 1,
    ca_pem: str | None = None, folder: Literal["", "adapter"] = "", beside: Literal["", "adapter"] = "",
    owner: str = UID, check_attempt: Callable[[], None] = lambda: None, environ: dict[str, str] | None = None,
    on_bytes: Callable[[int], None] = lambda done: None,
) -> Sent:  # fmt: skip
    """Publish as the stage does, to a bucket (in parts of PART_BYTES) or a claim."""
    network = Network(ca_pem=ca_pem)
    with told_of_destinations(), build_client(network) as client:
        place = Place(
            field=FIELD, address=address, folder=folder, beside=beside, owner=owner, secrets=secrets, claims=claims,
            network=network, client=client, environ=environ or {}, check_attempt=check_attempt,
            repeatedly=Retrier(
                what=f"{FIELD}: {address}", patience=Patience(tries=tries, first_s=0, most_s=0),
                stop=threading.Event(), reason=Reason.DESTINATION_UNAVAILABLE, action="be published to",
            ),
        )  # fmt: skip
        is_bucket = address.startswith("s3://")
        made: Destination = BucketDestination(place, part_bytes=PART_BYTES) if is_bucket else ClaimDestination(place)
        return made.publish(content, on_bytes)


def publish_in_process(content: Content, address: str, **given: object) -> BaseProcess:
    """The same in a process of its own, which exits with 0 where it has ended well; for who wants to kill it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.publications"])
    process = context.Process(target=_publish_and_exit, args=(content, address), kwargs=given)
    process.start()
    return process


def _publish_and_exit(content: Content, address: str, kill_at: int | None = None, **given: object) -> None:
    if kill_at is not None:
        _kill_at_call(kill_at)
    try:
        publish(content, address, **given)  # type: ignore[arg-type]
    except StageError:
        os._exit(1)
    os._exit(0)


def _kill_at_call(number: int) -> None:
    """Have the process killed before its call of that number, from 0, of what changes a disk."""
    count = 0

    def kill_before(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*given: object, **named: object) -> object:
            nonlocal count
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return call(*given, **named)

        return counted

    for name in ("mkdir", "rename", "fsync", "unlink", "rmdir", "fchmod"):
        setattr(os, name, kill_before(getattr(os, name)))
