"""Weights & Biases, by its own client: a run on the volume, or with a key one at its server.

The client is a process of its own beside Python's part of it. It is told the curve and nothing else: not the machine,
not the code, not what is printed, and it writes only where it is told to.
"""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import certifi

from llava_api.run_config import RunIdentity
from llava_api.spec import Wandb
from llava_trainer.files import make_folder, remove_folder
from llava_trainer.training.tracking.observations import Observation

FIELD = "spec.training.tracking.wandb"
INIT_S = 20
"""Longest that the server may take to say that it knows the run."""
FINISH_S = 4
"""Longest that it may take for what is left at the end: all trackers together have five seconds."""
_FAILED = 1
"""Exit code of an attempt that may be followed by another."""


class WandbError(Exception):
    """The run cannot be followed; says nothing that the server has said."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the server is reached."""

    url: str
    key: str = field(repr=False)
    proxy: str | None = field(default=None, repr=False)
    ca_pem: str | None = field(default=None, repr=False)
    """Further authorities to trust, besides the public ones."""


class WandbRun:
    """A destination. Without access, one that failed is begun anew: what lies in the folder is removed first."""

    def __init__(
        self, folder: Path, run: RunIdentity, asked: Wandb, total_steps: int, *, access: Access | None = None
    ) -> None:
        """Begin a run in ``folder``, which is this attempt's own, or go on with the server's.

        The server finds it again by its id, which is the run's UID: an attempt goes on behind the last step that is
        there. On the volume each attempt writes the whole curve, the part of attempts before it included: an upload
        appends to what is there under its id, so that a run is to be uploaded once, as the last attempt has left it.

        Raises:
            WandbError: the server does not take the run, or has steps that the run cannot have.
            Exception: what the client raises where it cannot write to the folder.
        """
        if folder.exists():
            remove_folder(folder)
        make_folder(folder)
        self._run = _begin(folder, run, asked, access)
        self._total_steps = total_steps
        # It counts from the first step that it has not got; a new run has had none.
        there = max(0, int(self._run.starting_step) - 1) if access is not None else 0
        if there > total_steps:
            self.close()
            raise WandbError(
                f"{FIELD}: the run there has step {there:,}, which this run, of {total_steps:,} steps, cannot have: "
                f"delete it there, or name another {FIELD}.project"
            )
        self._there = there
        self._last: dict[str, int] = {}

    def last_step_of(self, name: str) -> int:
        """See ``Destination``."""
        return self._last.get(name, self._there)

    def write(self, observations: Sequence[Observation]) -> None:
        """See ``Destination``. The client keeps what it is given until the server takes it."""
        for step, of_step in groupby(observations, key=lambda one: one.step):
            ones = list(of_step)
            values = {one.name: one.value for one in ones}
            self._run.log({**values, "_timestamp": ones[0].time_s}, step=step)
        self._last |= {one.name: one.step for one in observations}

    def finish(self, *, succeeded: bool) -> None:
        """See ``Destination``.

        Raises:
            Exception: the server has not taken all of it in time.
        """
        self._run.finish(exit_code=0 if succeeded else _FAILED)

    def close(self) -> None:
        """See ``Destination``. A run that is finished stays as it is."""
        try:
            self._run.finish(exit_code=_FAILED)
        finally:
            _end_client()


def _begin(folder: Path, run: RunIdentity, asked: Wandb, access: Access | None) -> Any:
    os.environ.update(_environment(folder, access))
    # Only whoever asks for it pays for it: importing takes seconds.
    import wandb

    name = run.name if run.stage == "train" else f"{run.name} ({run.stage})"
    settings = wandb.Settings(
        mode="offline" if access is None else "online",
        root_dir=str(folder),
        run_id=run.uid if run.stage == "train" else f"{run.uid}-{run.stage}",
        project=asked.project,
        entity=asked.entity,
        run_name=name,
        **({} if access is None else _reach(access)),
        **_QUIET,
    )
    # It logs what a server has said, which may be what the server was sent.
    logging.getLogger("wandb").setLevel(logging.CRITICAL + 1)
    try:
        return wandb.init(settings=settings)
    except BaseException as error:
        # What has not begun holds its id all the same.
        _end_client()
        if access is None or not isinstance(error, Exception):
            raise
        raise WandbError(f"{FIELD}: {_explain(str(error))}") from None


def _explain(said: str) -> str:
    """Why the server has not taken the run, in words of our own."""
    for word, meaning in _MEANINGS.items():
        if word in said:
            return meaning
    return "the server does not take the run; debug-internal.log on the run's volume says what it answers"


_MEANINGS: Mapping[str, str] = {
    "x509": "url: nobody that is trusted vouches for the server's certificate (spec.download.caConfigMap names others)",
    "401": "secretRef: the server does not know the key",
    "403": "secretRef: the key may not write to project and entity",
    "404": "project or entity: the server has none of that name for this key",
    "no such host": "url: there is no host of that name",
    "connection refused": "url: nobody listens there",
    "imed out": "url: the server does not answer",
    "deadline": "url: the server does not answer",
}
"""By what the client's errors hold; the first that fits."""


def _end_client() -> None:
    """End the client's own process, and with it all that it knows: the next one reads the environment anew."""
    import wandb

    wandb.teardown(_FAILED)


_QUIET: Mapping[str, Any] = {
    "console": "off", "silent": True, "quiet": True, "disable_git": True, "disable_code": True, "save_code": False,
    "disable_job_creation": True, "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True,
    "x_disable_viewer": True, "x_save_requirements": False,
    "init_timeout": INIT_S, "finish_timeout": FINISH_S, "finish_timeout_raises": True,
}  # fmt: skip
"""Settings by which it is told nothing but the curve, and keeps nobody waiting."""


def _reach(access: Access) -> dict[str, Any]:
    proxy = {} if access.proxy is None else {"https_proxy": access.proxy}
    return {"base_url": access.url, "api_key": access.key, "resume": "allow", **proxy}


def _environment(folder: Path, access: Access | None) -> dict[str, str]:
    """What the client reads of the environment: it reports no errors of its own, and keeps nothing in a home."""
    client = folder / "client"
    own = {name: str(client) for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")}
    if access is not None and access.ca_pem is not None:
        # Its process trusts one file, and knows no other way to be told.
        bundle = _own_folder() / "authorities.pem"
        bundle.write_text(f"{Path(certifi.where()).read_text(encoding='utf-8')}\n{access.ca_pem}", encoding="utf-8")
        own["SSL_CERT_FILE"] = str(bundle)
    return {**own, "WANDB_ERROR_REPORTING": "false"}


@cache
def _own_folder() -> Path:
    """Where nobody else writes: not on the volume, which other runs may share.

    One folder of the process: a server that is away is tried again each minute.
    """
    return Path(tempfile.mkdtemp(prefix="llava-wandb-"))
