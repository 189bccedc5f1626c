"""Contents to publish, and places to publish them to."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunIdentity
from llava_trainer.publishing.content import PUBLICATION, Content, Item, What, order_items
from llava_trainer.publishing.destination import Place
from llava_trainer.publishing.publication import describe_publication
from llava_trainer.retrying import Patience, Retrier
from llava_trainer.sources.network import Network, build_client

RUN = RunIdentity(
    namespace="team", name="invoices", uid="11111111-2222-3333-4444-555555555555", stage=StageName.PUBLISH, attempt=1
)  # fmt: skip
FIELD = "spec.publish.destinations[0].address"
QUICK = Patience(tries=3, first_s=0.001, most_s=0.001, most_asked_s=0.001)
CARD = b"---\nlicense: llama2\n---\n# A model\n"
MERGED = {
    "model-00001-of-00002.safetensors": bytes(range(256)) * 1200,
    "model-00002-of-00002.safetensors": b"second shard " * 9000,
    "config.json": b'{"model_type": "llava"}',
    "tokenizer.json": b"{}" * 40,
    "README.md": CARD,
}
"""Weights of 307 kB and 117 kB, and what is small."""


def make_content(folder: Path, files: Mapping[str, bytes], *, what: What = "merged", run: RunIdentity = RUN) -> Content:
    """Write the files, and what lists them, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, content: bytes) -> Item:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return Item(name=name, path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    items = [write(name, content) for name, content in files.items()]
    listing = write(PUBLICATION, describe_publication(run, what, items).encode())
    return Content(what=what, items=order_items([*items, listing]))


def make_place(
    address: str, root: Path, *, ca_pem: str | None = None, hub_endpoint: str | None = None, patience: Patience = QUICK,
    check_attempt: Callable[[], None] = lambda: None, **more: Any,
) -> Place:  # fmt: skip
    """A place whose Secret, where there is one, lies in ``root/secret``."""
    network = Network(ca_pem=ca_pem, hub_endpoint=hub_endpoint)
    retrier = Retrier(
        what=f"{FIELD}: {address}", patience=patience, stop=threading.Event(), reason=Reason.DESTINATION_UNAVAILABLE,
        action="be published to",
    )  # fmt: skip
    return Place(
        field=FIELD, address=address, owner=RUN.uid, secrets=root / "secret", claims=root / "claims", network=network,
        client=build_client(network), environ={}, repeatedly=retrier, check_attempt=check_attempt, **more,
    )  # fmt: skip


def write_secret(root: Path, **keys: str) -> None:
    """The keys of the Secret that ``make_place`` names."""
    folder = root / "secret"
    folder.mkdir(exist_ok=True)
    for key, value in keys.items():
        (folder / key).write_text(value)


def texts_behind(error: BaseException) -> list[str]:
    """Of the errors that a traceback would show before this one."""
    found: list[str] = []
    behind: BaseException | None = error
    while behind is not None:
        behind = behind.__cause__ or (None if behind.__suppress_context__ else behind.__context__)
        found.append(repr(behind))
    return found
