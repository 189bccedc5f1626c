"""What launchers tell each other, signed: anyone who reaches the rendezvous port may write into its store.

The key belongs to the attempt. It lies in the attempt's folder on the run's volume, which only the run's pods mount, so
that nobody needs a right on Secrets. It proves who speaks and hides nothing. It covers our own words only: torch's
elastic agents, gloo and NCCL exchange addresses unsigned, which is what the operator's NetworkPolicy is for.
"""

import hmac
import json
import logging
import os
import secrets
import time
from pathlib import Path

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.files import make_folder

MAX_BYTES = 64 * 1024
"""Longest signed value; a failure's message, the longest of them, takes less than half of it."""
_KEY_BYTES = 32
_DIGEST = "sha256"
_KEY_FILE = "rendezvous.key"
_KEY_MODE = 0o600
_KEY_WAIT_S = 60.0
"""For a key that another pod has made to be seen here: network file systems keep what a folder held for up to a minute
(NFS' acdirmax)."""

logger = logging.getLogger(__name__)


class Signer:
    """Signs values of one attempt under their names, and tells which ones were signed so."""

    def __init__(self, key: bytes, *, run_uid: str, stage: str, attempt: int) -> None:
        self._key = key
        self._attempt = [run_uid, stage, attempt]
        self._doubted: set[str] = set()

    def sign(self, name: str, value: str) -> str:
        """The value with its signature: HMAC-SHA256 over run, stage, attempt, name and value."""
        signed = f"{self._digest(name, value)}:{value}"
        assert len(signed.encode()) <= MAX_BYTES, name
        return signed

    def verify(self, name: str, signed: bytes) -> str | None:
        """The value that was signed under this name; None for anything else, which is logged once a name."""
        if not signed:
            return None
        if len(signed) <= MAX_BYTES:
            digest, _, value = signed.decode(errors="replace").partition(":")
            if hmac.compare_digest(digest.encode(), self._digest(name, value).encode()):
                return value
        if name not in self._doubted:
            self._doubted.add(name)
            # Not what it says: that is somebody's choice who may want to be read.
            logger.warning(
                "a value of %d bytes under %s is passed over: it was not signed by this run; somebody else reaches the "
                "rendezvous port",
                len(signed), name,
            )  # fmt: skip
        return None

    def _digest(self, name: str, value: str) -> str:
        return hmac.digest(self._key, json.dumps([*self._attempt, name, value]).encode(), _DIGEST).hex()


def make_signer(config: RunConfig, *, wait_s: float = _KEY_WAIT_S) -> Signer:
    """The signer of this attempt; its key is made by whichever pod comes first.

    Args:
        config: the run configuration.
        wait_s: how long to wait for a key that another pod makes.

    Raises:
        StageError: RendezvousFailed; the key cannot be read.
    """
    run = config.run
    folder = config.volume.attempt_dir(run.stage, run.attempt)
    return Signer(provide_key(folder, wait_s=wait_s), run_uid=run.uid, stage=run.stage.value, attempt=run.attempt)


def provide_key(folder: Path, *, wait_s: float) -> bytes:
    """The key in ``folder``, made if there is none. Whoever calls this at the same time gets the same key.

    Raises:
        StageError: RendezvousFailed; there is one, and it does not become readable within ``wait_s`` seconds.
    """
    path = folder / _KEY_FILE
    if not path.exists():
        make_folder(folder)
        _make_key(path)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            key, trouble = path.read_bytes(), ""
        except OSError as error:
            key, trouble = b"", f": {error.strerror}"
        if len(key) == _KEY_BYTES:
            return key
        if time.monotonic() >= deadline:
            raise StageError(
                Reason.RENDEZVOUS_FAILED,
                f"{path}, by which the training pods know each other, has {len(key)} bytes instead of {_KEY_BYTES} "
                f"after {wait_s:.0f} s{trouble}: is the run's volume the same in every pod?",
            )
        time.sleep(0.1)


def _make_key(path: Path) -> None:
    """Make a key, or leave the one that another pod has made meanwhile."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_key(aside)
        try:
            # Unlike a rename it replaces nothing, and unlike O_EXCL it leaves nothing half written.
            os.link(aside, path)
        except FileExistsError:
            pass
        except OSError:
            # Some file systems have no links. Or there was one, and the answer was lost: then this one finds it.
            _write_key(path)
    except FileExistsError:
        pass
    finally:
        aside.unlink(missing_ok=True)


def _write_key(path: Path) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _KEY_MODE)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(secrets.token_bytes(_KEY_BYTES))
        stream.flush()
        os.fsync(descriptor)
