"""What Flux and Helm make of a run, by the library that they use."""

import json
import subprocess

import pytest

from tests.controller.lives import list_lives
from tests.localcluster.tools import KSTATUS, ensure_tools

pytestmark = pytest.mark.cluster


def test_kstatus_tells_the_truth_at_every_point_of_a_runs_life() -> None:
    lives = list_lives()
    program = ensure_tools((KSTATUS,)).path("kstatus")
    given = json.dumps([life.run for life in lives.values()])
    done = subprocess.run([program], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    computed = {name: answer["status"] for name, answer in zip(lives, answers, strict=True)}
    assert computed == {name: life.kstatus for name, life in lives.items()}
    failed = next(answer for name, answer in zip(lives, answers, strict=True) if name == "failed for good")
    assert "WorkerKilled" in failed["message"] or "exit code 71" in failed["message"]
