"""Pods of a stage: ``llava-trainer STAGE`` as processes of their own, and what they do to a volume."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from llava_api.constants import ENV_COMPLETION_INDEX, ENV_INDEX_FAILURES, ENV_POD_NAME
from llava_api.report import StageResult
from llava_api.run_config import RunConfig
from llava_trainer.files import sha256_file
from llava_trainer.outcome import ENV_TERMINATION_LOG
from tests.trainer.trainings import PROCESS_DEADLINE_S, children_of

STOPPING = Path(__file__).parent / "stopping"


class Pod:
    """One pod of a stage, running."""

    def __init__(
        self, config: RunConfig, name: str, *, node: int = 0, failures: int = 0, stop_before: str | None = None
    ) -> None:
        """Start it.

        Args:
            config: its run configuration.
            name: the pod's.
            node: its node rank, or index.
            failures: how many pods of its index have failed before it, where the Job counts them.
            stop_before: stop whichever process is about to give something a name that this pattern finds, or to sync
                a file (``stopping/sitecustomize.py``).
        """
        self._folder = config.volume_root.parent / f"pod-{name}"
        self._folder.mkdir()
        self._note = self._folder / "stopped"
        file = self._folder / "run.json"
        file.write_text(config.model_dump_json())
        environment = os.environ | {
            ENV_POD_NAME: name,
            ENV_COMPLETION_INDEX: str(node),
            ENV_INDEX_FAILURES[0]: str(failures),
            ENV_TERMINATION_LOG: str(self._folder / "termination-log"),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self._folder),
        }
        if stop_before is not None:
            environment |= {"PYTHONPATH": str(STOPPING), "STOP_BEFORE": stop_before, "STOP_NOTE": str(self._note)}
        self._log = (self._folder / "log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llava_trainer.cli", config.run.stage.value, "--config", str(file)],
            env=environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def await_stop(self) -> None:
        """Wait until one of its processes has stopped."""
        deadline = time.monotonic() + PROCESS_DEADLINE_S
        while not self._note.exists() or not self._note.read_text() or not _is_stopped(int(self._note.read_text())):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(int(self._note.read_text()), signal.SIGCONT)

    def kill(self) -> None:
        """End it as a node that dies does."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> int:
        """Exit code."""
        return self.process.wait(PROCESS_DEADLINE_S)

    @property
    def result(self) -> StageResult:
        return StageResult.model_validate_json((self._folder / "termination-log").read_text())

    @property
    def output(self) -> str:
        return (self._folder / "log").read_text()

    def __enter__(self) -> "Pod":
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in [*children_of(self.process.pid), *([self.process.pid] if self.process.poll() is None else [])]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()


def list_contents(root: Path) -> dict[str, str]:
    """Everything below ``root``: digests of files, targets of links, and that there is a folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "folder" if path.is_dir() else sha256_file(path)
    return found


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
