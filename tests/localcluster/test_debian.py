"""A Debian package's programs are unpacked, never installed, and used only as they came."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.localcluster import debian
from tests.localcluster.debian import PROMETHEUS, UnpackedPackage, ensure_unpacked, require_source
from tests.localcluster.errors import ClusterError
from tests.localcluster.kept import keep

_THING = UnpackedPackage("thing", ("program",))


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packages that were downloaded; each is one that dpkg-deb makes here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree = tmp_path / "tree"
    for name, content in {
        "DEBIAN/control": "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: thing\n",
        "usr/bin/program": "#!/bin/sh\necho here\n",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    (tree / "usr/bin/program").chmod(0o755)
    fetched: list[str] = []

    def download(package: UnpackedPackage, folder: Path) -> Path:
        fetched.append(package.name)
        archive = folder / "thing_1_all.deb"
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, archive], check=True, capture_output=True)
        return archive

    monkeypatch.setattr(debian, "_download", download)
    return fetched


def test_package_is_unpacked_once(downloads: list[str]) -> None:
    program = ensure_unpacked(_THING).path("program")
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "here\n"
    assert ensure_unpacked(_THING).path("program") == program
    assert downloads == ["thing"]


def test_damaged_program_is_unpacked_anew(downloads: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    program = ensure_unpacked(_THING).path("program")
    program.write_text("#!/bin/sh\necho other\n")
    assert ensure_unpacked(_THING).path("program").read_text() == "#!/bin/sh\necho here\n"
    assert downloads == ["thing", "thing"]
    assert "differs from its manifest: unpacking it anew" in capsys.readouterr().err


def test_package_without_the_program_is_an_error(downloads: list[str]) -> None:
    with pytest.raises(ClusterError, match="no other among what was made"):
        ensure_unpacked(UnpackedPackage("thing", ("program", "other")))


def test_index_is_renewed_when_the_download_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's mirrors keep only the newest version: an index of last month names one that is gone."""
    asked: list[str] = []

    def run(argv: list[str], *, cwd: Path | None = None, **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(" ".join(argv[-2:]))
        renewed = "update --quiet" in asked
        if renewed and cwd:
            (cwd / "thing_2_all.deb").touch()
        return subprocess.CompletedProcess(argv, 0 if renewed else 100, "", "404 Not Found")

    monkeypatch.setattr(debian, "run", run)
    assert debian._download(_THING, tmp_path).name == "thing_2_all.deb"
    assert asked == ["--quiet thing", "update --quiet", "--quiet thing"]


def test_system_without_apt_takes_what_is_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None if name == "apt-get" else str(tmp_path / name))
    for name in PROMETHEUS.programs:
        (tmp_path / name).touch()
    assert ensure_unpacked(PROMETHEUS).path("promtool") == tmp_path / "promtool"


def test_system_with_neither_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ClusterError, match=r"prometheus and promtool are needed.*put them on PATH"):
        require_source(PROMETHEUS)


def test_what_was_kept_before_is_replaced_whole(tmp_path: Path) -> None:
    for number in ("1", "2"):
        made = tmp_path / f"made-{number}"
        made.mkdir()
        (made / f"program-{number}").touch()
        keep(made, tmp_path / "folder", [f"program-{number}"], {})
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["manifest.json", "program-2"]


def test_real_programs_run(prometheus: Path, promtool: Path) -> None:
    for program in (prometheus, promtool):
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        assert f"{program.name}, version 2." in done.stdout
