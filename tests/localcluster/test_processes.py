"""Only processes that an instance started are ended, all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.localcluster.errors import ClusterError
from tests.localcluster.processes import marked, recorded, start, stop
from tests.localcluster.shell import run, wait_until
from tests.localcluster.teardown import mounts_below


def test_started_program_is_recorded_and_ended(tmp_path: Path) -> None:
    process = start("sleeper", ["sleep", "60"], state_dir=tmp_path)
    assert process.is_alive()
    assert recorded(tmp_path) == [process]
    stop([process])
    assert not process.is_alive()


def test_program_that_ignores_a_request_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.localcluster.processes._TERM_TIMEOUT_S", 0.3)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    process = start("stubborn", [sys.executable, "-c", code], state_dir=tmp_path)
    wait_until("the program", lambda: None if "ready" in process.log.read_text() else "starting", timeout_s=10)
    stop([process])
    assert not process.is_alive()


def test_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    process = start("sleeper", ["sleep", "60"], state_dir=tmp_path)
    stop([replace(process, start_ticks=process.start_ticks - 1)])
    assert process.is_alive()
    stop([process])


def test_unrecorded_program_is_found_by_its_mark_and_no_other(tmp_path: Path) -> None:
    mine = start("sleeper", ["sleep", "60"], state_dir=tmp_path / "mine")
    other = start("sleeper", ["sleep", "60"], state_dir=tmp_path / "mine-too")
    (tmp_path / "mine" / "processes" / "sleeper.json").write_text("{")
    assert recorded(tmp_path / "mine") == []
    assert [process.pid for process in marked(tmp_path / "mine")] == [mine.pid]
    stop([mine, other])


def test_ended_program_is_reported_with_its_log(tmp_path: Path) -> None:
    process = start("failing", ["sh", "-c", "echo cannot bind; exit 3"], state_dir=tmp_path)
    wait_until("the program to end", lambda: "running" if process.is_alive() else None, timeout_s=10)
    with pytest.raises(ClusterError, match=r"failing has ended; the end of .*failing\.log:\n    cannot bind"):
        process.require_alive()
    stop([process])


def test_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="kubelet: the program '/nowhere/kubelet' was not found"):
        start("kubelet", ["/nowhere/kubelet"], state_dir=tmp_path)


def test_wait_ends_at_its_deadline_with_the_reason() -> None:
    with pytest.raises(ClusterError, match=r"gave up waiting for the moon after 0 s: it is day"):
        wait_until("the moon", lambda: "it is day", timeout_s=0.05, interval_s=0.01)


def test_failed_program_is_reported_with_its_words() -> None:
    with pytest.raises(ClusterError, match=r"(?s)counting: `sh -c .*` ended with exit code 4:\n    no fingers"):
        run(["sh", "-c", "echo no fingers >&2; exit 4"], what="counting", timeout_s=10)
    with pytest.raises(ClusterError, match=r"counting: `sleep 30` was still running after 0 s"):
        run(["sleep", "30"], what="counting", timeout_s=0.05)
    with pytest.raises(ClusterError, match="the program 'no-such-program' was not found"):
        run(["no-such-program"], what="counting", timeout_s=1)


def test_own_process_is_never_found(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.localcluster.processes import marked; "
        f"assert marked(Path({str(tmp_path)!r})) == []"
    )
    environment = {**os.environ, "LLAVA_LOCALCLUSTER": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=30)


def test_folder_without_mounts_has_none(tmp_path: Path) -> None:
    assert mounts_below(tmp_path) == []
    assert Path("/proc") in mounts_below(Path("/")) or mounts_below(Path("/")) == []
