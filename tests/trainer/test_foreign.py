"""Files of others are opened, linked and copied so that nothing else can take their place; nothing is left behind."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava_trainer.attempts import foreign
from llava_trainer.attempts.foreign import ForeignFolder, has_links
from llava_trainer.files import SPARE_BYTES


@pytest.fixture
def theirs(tmp_path: Path) -> ForeignFolder:
    folder = tmp_path / "claim" / "theirs"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_text("content")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    return ForeignFolder(claim=tmp_path / "claim", path=folder)


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object, **how: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(foreign.os, "link", refuse)


def test_a_file_is_linked(theirs: ForeignFolder, tmp_path: Path):
    target = tmp_path / "target"
    target.write_text("what stood there before")
    assert theirs.take_file("below/file", target, 7) == 7
    assert target.samefile(theirs.path / "below" / "file")
    assert has_links(tmp_path)


def test_without_links_it_is_copied(theirs: ForeignFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refuse_links(monkeypatch)
    target = tmp_path / "target"
    assert theirs.take_file("below/file", target, 7) == 7
    assert target.read_text() == "content"
    assert target.stat().st_nlink == 1
    assert not has_links(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claim", "secret", "target"]


def test_a_copy_that_does_not_fit_is_not_begun(theirs: ForeignFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refuse_links(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, free=SPARE_BYTES + 6))
    with pytest.raises(OSError, match="a copy needs 7 bytes") as caught:
        theirs.take_file("below/file", tmp_path / "target", 7)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "target").exists()


def test_nothing_is_left_of_a_copy_that_breaks_off(
    theirs: ForeignFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    refuse_links(monkeypatch)

    def cut(path: Path) -> None:
        os.truncate(theirs.path / "below" / "file", 3)

    monkeypatch.setattr(foreign, "find_free_bytes", cut)
    with pytest.raises(OSError, match="4 of 7 bytes are gone"):
        theirs.take_file("below/file", tmp_path / "target", 7)
    assert not (tmp_path / "target").exists()


def test_what_takes_the_place_of_a_file_meanwhile_is_not_linked(
    theirs: ForeignFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, link = theirs.path / "below" / "file", os.link

    def replace_before(*paths: object, **how: object) -> None:
        file.unlink()
        file.symlink_to(tmp_path / "secret" / "file")
        link(*paths, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(foreign.os, "link", replace_before)
    with pytest.raises(OSError, match="replaced meanwhile"):
        theirs.take_file("below/file", tmp_path / "target", 7)
    assert not os.path.lexists(tmp_path / "target")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("link", "Too many levels of symbolic links"),
        ("folder-link/file", "Not a directory"),
        ("pipe", "no plain file"),
        ("below", "no plain file"),
        ("large", "8 bytes instead of 7"),
        ("nowhere", "No such file"),
        ("../theirs/below/file", "no name below a folder"),
        ("below/./file", "no name below a folder"),
        ("/etc/passwd", "no name below a folder"),
        ("", "no name below a folder"),
        ("a\0b", "no name below a folder"),
        ("\ud800", "no name below a folder"),
        ("n" * 300, "File name too long"),
    ],
)
@pytest.mark.timeout(60)
def test_what_is_no_plain_file_is_not_taken(theirs: ForeignFolder, tmp_path: Path, name: str, problem: str):
    (theirs.path / "link").symlink_to(tmp_path / "secret" / "file")
    (theirs.path / "folder-link").symlink_to(tmp_path / "secret")
    (theirs.path / "large").write_text("8 bytes.")
    os.mkfifo(theirs.path / "pipe")
    with pytest.raises(OSError, match=problem):
        theirs.take_file(name, tmp_path / "target", 7)
    assert not (tmp_path / "target").exists()
    with pytest.raises(OSError, match="8 bytes|more than 7 bytes" if name == "large" else problem):
        theirs.read_file(name, 7)


def test_a_folder_that_is_a_link_is_not_gone_into(theirs: ForeignFolder, tmp_path: Path):
    (theirs.path / "link").symlink_to(tmp_path / "secret")
    for folder in (theirs / "link", (theirs / "link").at(theirs.path / "link" / "inner")):
        with pytest.raises(NotADirectoryError):
            folder.list_names()
        with pytest.raises(NotADirectoryError):
            folder.changed_at()
    assert sorted(theirs.list_names()) == ["below", "link"]


def test_so_many_names_of_a_folder_are_read(theirs: ForeignFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(foreign, "_MOST_NAMES", 2)
    for number in range(4):
        (theirs.path / str(number)).touch()
    assert len(theirs.list_names()) == 2
