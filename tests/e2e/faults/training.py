"""A training that is long enough to be hit in the middle, watched through its status and the folders of its volume."""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import LABEL_ATTEMPT, LABEL_COMPLETION_INDEX, Phase, StageName
from llava_api.names import job_name, volume_claim_name
from llava_api.status import AttemptStatus, StageState, StageStatus
from llava_trainer.training.curve import CurvePoint, read_curve
from tests.e2e.faults.breaking import Pod
from tests.e2e.runs import Runs
from tests.kubectl import wait_for
from tests.recovery import Recovery

EVERY_STEPS = 5
STEPS_PER_EPOCH = 8
GRACE_S = 15
_RESUMED = re.compile(r"resuming from \S+, after step (\d+) of")
_TAKEN_OVER = "before/"
_POLL_S = 0.25
_STEPS_TIMEOUT_S = 300
RECOVERY_TIMEOUT_S = 400
WARM_S = 90
"""From a fault to the next attempt's first step."""
_WARM_BESIDES_S = 40
"""How much of that is for noticing it, for the pods to end and for the delay before the next attempt."""
_LOOK_S = 5
SAME_LOSS = 1e-3
"""Relative: sums over two processes are not made in the same order each time."""


@dataclass(kw_only=True)
class Training:
    """The training of one run."""

    runs: Runs
    name: str
    curves: dict[int, list[CurvePoint]] = field(default_factory=dict)
    """What each attempt that is over has logged."""
    _looked: float = 0.0
    _first_step_at: float = 0.0

    def start(self, *, epochs: int, **changes: dict[str, Any]) -> None:
        """Apply the run: two pods on the CPU, many small checkpoints, and nodes that are given up soon."""
        lost = [
            {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}
            for key in ("not-ready", "unreachable")
        ]
        self.runs.start(
            self.name,
            epochs=epochs,
            training={
                # Half as many steps as the sample's, each twice as long: more time to be hit in.
                "batch": {"perDevice": 8, "global": 32},
                "checkpoint": {"everySteps": EVERY_STEPS, "keep": 2},
                "maxRestarts": 10,
            },
            workers={"gracePeriodSeconds": GRACE_S},
            scheduling={"tolerations": lost},
            evaluation={"prompts": [], "workers": {"gpus": 0}},
            **changes,
        )

    def patch(self, spec: str) -> None:
        """Change the spec (JSON)."""
        self.runs.kubectl.run("patch", "lft", self.name, "--type=merge", "-p", f'{{"spec": {spec}}}')

    @cached_property
    def volume(self) -> Path:
        """The run's volume, which is a folder of this machine."""
        kubectl = self.runs.kubectl
        claim = kubectl.get("pvc", volume_claim_name(self.name))
        return Path(kubectl.get("pv", claim["spec"]["volumeName"])["spec"]["hostPath"]["path"])

    @property
    def stage(self) -> StageStatus:
        """Status of the training."""
        status = self.runs.status(self.name)
        assert status.phase is not Phase.FAILED, status.failure
        return next(
            (stage for stage in status.stages if stage.name is StageName.TRAIN), StageStatus(name=StageName.TRAIN)
        )

    def attempt(self, number: int) -> AttemptStatus:
        """Status of an attempt."""
        return next(attempt for attempt in self.stage.attempts if attempt.number == number)

    def pods(self, number: int) -> dict[int, Pod]:
        """Pods of an attempt by rank; those that are deleted while a node is cut off are among them."""
        labels = [(pod, pod["metadata"]["labels"]) for pod in self.runs.pods(self.name, StageName.TRAIN)]
        return {
            int(of[LABEL_COMPLETION_INDEX]): pod for pod, of in labels if of[LABEL_ATTEMPT] == str(number)
        }  # fmt: skip

    def job(self, number: int) -> str:
        """Name of an attempt's Job."""
        return job_name(self.name, StageName.TRAIN, number)

    def folder(self, number: int) -> Path:
        """Where an attempt's files lie: in a folder of its own, which later ones may have taken over."""
        found = sorted((self.volume / "attempts").glob(f"**/train-{number}"), key=lambda path: len(path.parts))
        assert found, f"attempt {number} has left nothing on the volume"
        return found[0]

    def curve(self, number: int) -> list[CurvePoint]:
        """What an attempt has logged so far; nothing where it has not begun."""
        if number in self.curves:
            return self.curves[number]
        return read_curve(self.volume / "attempts" / f"train-{number}" / "history.jsonl")

    def read_digests(self, number: int) -> dict[str, str]:
        """sha256 of every file that an attempt itself has written, by path; not of what it has taken over."""
        folder = self.folder(number)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if not (name := path.relative_to(folder).as_posix()).startswith(_TAKEN_OVER)
        }

    def resumed_step(self, number: int) -> int | None:
        """The step that an attempt went on from; None while it has not said so."""
        if number == 1:
            return 0
        log = self.volume / "attempts" / f"train-{number}" / "logs" / "rank-0.log"
        found = _RESUMED.search(log.read_text(errors="replace")) if log.is_file() else None
        return int(found[1]) if found else None

    def wait_for_steps(self, num_steps: int) -> int:
        """Wait until the newest attempt has done so many steps of its own; returns its number."""
        number = wait_for("training to begin", lambda: self.stage.attempt or None, timeout_s=_STEPS_TIMEOUT_S)
        for wanted in (1, num_steps):
            what, has_stepped = f"{wanted} steps of attempt {number}", self._stepping(number, wanted)
            wait_for(what, has_stepped, timeout_s=_STEPS_TIMEOUT_S, poll_s=_POLL_S)
            self._first_step_at = self._first_step_at or time.time()
        return number

    def _stepping(self, number: int, num_steps: int) -> Callable[[], bool]:
        def has_stepped() -> bool:
            resumed, curve = self.resumed_step(number), self.curve(number)
            return resumed is not None and bool(curve) and curve[-1].step >= resumed + num_steps

        return has_stepped

    def follow(self, fault: str, number: int, since: float, *, timeout_s: float = RECOVERY_TIMEOUT_S) -> Recovery:
        """Watch a run from a fault of attempt ``number`` to the next one's first step.

        What the two attempts have logged is held against each other.

        Args:
            fault: what was done to it, for people.
            number: of the attempt.
            since: when, in seconds since the epoch.
            timeout_s: how long it may take.
        """
        stepping = self._stepping(number + 1, 1)
        what = f"a step of attempt {number + 1} after {fault}"
        wait_for(what, lambda: stepping() or self._is_going_on(), timeout_s=timeout_s, poll_s=_POLL_S)
        stepped = time.time()
        self.curves[number] = read_curve(self.folder(number) / "history.jsonl")
        self.check_goes_on(number)
        over = self.attempt(number)
        return Recovery(
            fault=fault, detected_s=_seconds(over.stop_time) - since, gone_s=_seconds(over.completion_time) - since,
            stepped_s=stepped - since,
        )  # fmt: skip

    def _is_going_on(self) -> bool:
        """False; raises AssertionError where the run has failed, so that nobody waits for it in vain."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            assert self.stage.state is StageState.RUNNING
        return False

    def warm_s(self) -> float:
        """What recovering may take: 90 s, or more where the machine is so busy that the first attempt began slowly."""
        first = self.attempt(1)
        assert first.start_time is not None
        return max(WARM_S, self._first_step_at - _seconds(first.start_time) + _WARM_BESIDES_S)

    def check_goes_on(self, number: int) -> None:
        """Hold the curve of an attempt against the one that follows it."""
        old, new, resumed = self.curves[number], self.curve(number + 1), self.resumed_step(number + 1)
        assert resumed is not None
        check_whole(new)
        assert resumed <= old[-1].step
        assert new[:resumed] == old[:resumed]
        check_same(old, new, tolerance=SAME_LOSS)


def _seconds(instant: str | None) -> float:
    assert instant is not None
    return datetime.fromisoformat(instant).timestamp()


def check_whole(curve: list[CurvePoint]) -> None:
    """Every step once and in order, from the first."""
    assert [entry.step for entry in curve] == list(range(1, len(curve) + 1))


def check_same(one: list[CurvePoint], other: list[CurvePoint], *, tolerance: float) -> None:
    """The steps that two curves share have the same losses (relative ``tolerance``) and the same samples."""
    for mine, yours in zip(one, other, strict=False):
        assert mine.tokens == yours.tokens, mine.step
        assert mine.loss == pytest.approx(yours.loss, rel=tolerance), mine.step
