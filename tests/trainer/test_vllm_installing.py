"""What the tests say where vLLM is not there, and cannot be installed."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.localcluster.errors import ClusterError
from tests.trainer.servers import vllm


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache with room, and no uv but one that a test puts there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(vllm, "REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr(vllm.shutil, "disk_usage", lambda _: SimpleNamespace(free=20 << 30))
    (tmp_path / "bin").mkdir()
    return tmp_path


def make_uv(folder: Path, script: str) -> None:
    program = folder / "bin" / "uv"
    program.write_text(f"#!/bin/sh\nfor last; do :; done\necho $1 >>{folder}/asked\n{script}\n")
    program.chmod(0o755)


def test_a_vllm_that_is_not_there_is_asked_for_by_its_command(cache: Path) -> None:
    with pytest.raises(ClusterError, match=r"vLLM is not installed: `python -m tests\.prepare` installs it"):
        vllm.require_vllm()
    # Half of one is none.
    vllm.environment_dir().mkdir(parents=True)
    with pytest.raises(ClusterError):
        vllm.require_vllm()
    (vllm.environment_dir() / ".ready").touch()
    vllm.require_vllm()


def test_too_little_room_is_told_before_anything_is_fetched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_uv(cache, "exit 0")
    monkeypatch.setattr(vllm.shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000_000))
    with pytest.raises(ClusterError, match=r"has 2 GB free, and installing it takes 15 GB"):
        vllm.install_vllm()
    assert not (cache / "asked").exists()


def test_without_uv_it_says_so(cache: Path) -> None:
    with pytest.raises(ClusterError, match=r"vLLM is not installed: .*No such file.*uv"):
        vllm.install_vllm()
    assert not (vllm.environment_dir() / ".ready").exists()


@pytest.mark.parametrize("failing", ["venv", "pip"])
def test_what_cannot_be_fetched_leaves_nothing_that_looks_whole(failing: str, cache: Path) -> None:
    make_uv(cache, f'[ "$1" != {failing} ]')
    with pytest.raises(ClusterError, match=r"vLLM is not installed: .*returned non-zero exit status 1"):
        vllm.install_vllm()
    with pytest.raises(ClusterError):
        vllm.require_vllm()
    # Tried again, it begins anew and is whole.
    make_uv(cache, "exit 0")
    vllm.environment_dir().mkdir(parents=True, exist_ok=True)
    vllm.install_vllm()
    vllm.require_vllm()
    (cache / "asked").unlink()
    vllm.install_vllm()
    assert not (cache / "asked").exists(), "it is there"


def test_the_environment_goes_by_what_is_locked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = vllm.environment_dir()
    assert before.parent == cache / "cache" / "llava-finetune-operator"
    locked = cache / "vllm.txt"
    locked.write_bytes(vllm._LOCKED.read_bytes() + os.linesep.encode())
    monkeypatch.setattr(vllm, "_LOCKED", locked)
    assert vllm.environment_dir() != before
