"""Threads by the cores of the container, not of the node."""

import os
from pathlib import Path

import pytest

from llava_trainer.host_cores import count_cores
from llava_trainer.stages import train
from tests.trainer.trainings import configure

NODE = 64


@pytest.fixture(autouse=True)
def _large_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(NODE)))


def write_limit(cgroup: Path, version: int, quota: str, period: str = "100000") -> None:
    if version == 2:
        (cgroup / "cpu.max").write_text(f"{quota} {period}\n")
        return
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.mark.parametrize(
    ("version", "quota", "cores"),
    [(2, "800000", 8), (2, "150000", 1), (2, "50000", 1), (2, "max", NODE), (2, "9900000", NODE),
     (1, "800000", 8), (1, "-1", NODE)],
)  # fmt: skip
def test_cores_are_those_of_the_containers_limit(tmp_path: Path, version: int, quota: str, cores: int):
    write_limit(tmp_path, version, quota)
    assert count_cores(tmp_path) == cores


def test_without_cgroups_they_are_the_nodes(tmp_path: Path):
    assert count_cores(tmp_path) == NODE


@pytest.mark.parametrize(
    ("offloaded", "ranks", "threads"), [(True, 8, 2), (True, 1, 16), (True, 32, 1), (False, 8, 1), (False, 1, None)]
)
def test_offloaded_states_are_stepped_by_all_cores_of_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offloaded: bool, ranks: int, threads: int | None
):
    config = configure(
        tmp_path, tmp_path, training={"zero": {"stage": 2, "offload": {"optimizer": offloaded}}},
        workers={"processesPerNode": ranks},
    )  # fmt: skip
    monkeypatch.setattr(train, "count_cores", lambda: 16)
    monkeypatch.setattr(os, "environ", {})
    train._set_environment(config)
    assert os.environ.get("OMP_NUM_THREADS") == (None if threads is None else str(threads))


def test_what_somebody_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = configure(tmp_path, tmp_path, workers={"processesPerNode": 8})
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "3"})
    train._set_environment(config)
    assert os.environ["OMP_NUM_THREADS"] == "3"
