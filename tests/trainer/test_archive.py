"""Archives made by an enemy: nothing lands outside, nothing but plain files comes out, and no bomb goes off."""

import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.sources import archive
from llava_trainer.sources.archive import unpack

FILES = {"train.json": b"[]", "images/a.jpg": os.urandom(3 << 20), "images/sub/b ü.jpg": b"b"}


def add_tar(opened: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    opened.addfile(info, io.BytesIO(content))


def make_tar(path: Path, build: Callable[[tarfile.TarFile], None], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as opened:  # type: ignore[call-overload]
        build(opened)
    return path


def add_zip(opened: zipfile.ZipFile, name: str, content: bytes = b"", kind: int = stat.S_IFREG) -> None:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    opened.writestr(info, content, zipfile.ZIP_DEFLATED)


def make_zip(path: Path, build: Callable[[zipfile.ZipFile], None]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        build(opened)
    return path


def run(path: Path, on_bytes: Callable[[int, str], None] = lambda size, name: None) -> Path:
    folder = path.parent / "unpacked"
    unpack(path, folder, field="spec.dataset.source", address="https://h/a", on_bytes=on_bytes)
    return folder


class _UnsaidUtf8(zipfile.ZipInfo):
    """A name in UTF-8 without the flag that says so, as macOS writes it."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode(), self.flag_bits & ~0x800


def test_names_in_utf8_are_found_whether_the_archive_says_so_or_not(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(_UnsaidUtf8("images/Größe 漢字.jpg"), b"a")
        opened.writestr("images/naïve.jpg", b"b")
    assert {file.name for file in (run(path) / "images").iterdir()} == {"Größe 漢字.jpg", "naïve.jpg"}


def test_a_name_in_code_page_437_stays_what_it_is(tmp_path: Path):
    class OldName(zipfile.ZipInfo):
        def _encodeFilenameFlags(self) -> tuple[bytes, int]:
            return self.filename.encode("cp437"), 0

    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(OldName("Größe.jpg"), b"a")
    assert [file.name for file in run(path).iterdir()] == ["Größe.jpg"]


def test_many_files_are_not_synced_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """LLaVA's 558,000 images would wait for the disk as often."""
    path = make_zip(tmp_path / "a.zip", lambda opened: [add_zip(opened, f"{n}.jpg", b"x") for n in range(50)] and None)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    assert len(list(run(path).iterdir())) == 50
    assert len(synced) < 5


def refusal(path: Path) -> str:
    with pytest.raises(StageError) as caught:
        run(path)
    assert caught.value.reason is Reason.SOURCE_REFUSED
    assert caught.value.message.startswith("spec.dataset.source: https://h/a")
    assert not (path.parent / "unpacked").exists(), "it appears whole or not at all"
    return caught.value.message


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
def test_what_comes_out_is_what_went_in(tmp_path: Path, form: str) -> None:
    def fill(opened: tarfile.TarFile) -> None:
        add_tar(opened, ".", type=tarfile.DIRTYPE)
        add_tar(opened, "empty", type=tarfile.DIRTYPE, mode=0o000)
        for name, content in FILES.items():
            add_tar(opened, f"./{name}", content, mode=0o4600)

    def fill_zip(opened: zipfile.ZipFile) -> None:
        opened.mkdir("empty")
        for name, content in FILES.items():
            add_zip(opened, name, content)

    path = tmp_path / "a"
    _ = make_zip(path, fill_zip) if form == "zip" else make_tar(path, fill, "w" if form == "tar" else "w:gz")
    told: list[int] = []
    folder = run(path, lambda size, name: told.append(size))
    assert content_of(folder) == FILES
    assert (folder / "empty").is_dir()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")} == {0o644, 0o755}
    assert sum(told) == sum(map(len, FILES.values()))
    assert max(told) <= 1 << 20, "a piece at a time"


def test_what_stood_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "old").write_text("old")
    path = make_zip(tmp_path / "a", lambda opened: add_zip(opened, "new", b"new"))
    assert content_of(run(path)) == {"new": b"new"}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "a\\..\\evil"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    assert "no name below a folder" in refusal(make_tar(tmp_path / "a", lambda opened: add_tar(opened, name, b"x")))
    assert "no name below a folder" in refusal(make_zip(tmp_path / "b", lambda opened: add_zip(opened, name, b"x")))
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_of_a_tar(tmp_path: Path, kind: bytes) -> None:
    path = make_tar(tmp_path / "a", lambda opened: add_tar(opened, "x", type=kind, linkname="/etc/passwd"))
    assert "'x', which is a link or a device" in refusal(path)


def test_sparse_file_of_a_tar(tmp_path: Path) -> None:
    """GNU's old form: 512 bytes that claim to be a terabyte."""

    def fill(opened: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("hole")
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[156:157] = tarfile.GNUTYPE_SPARSE
        header[483:495] = b"0" + b"%o" % 10**10
        header[148:156] = b"        "
        header[148:156] = b"%06o\0 " % sum(header)
        assert opened.fileobj is not None
        opened.fileobj.write(bytes(header))

    assert "'hole', which is a link or a device" in refusal(make_tar(tmp_path / "a", fill))


def test_link_of_a_zip(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a", lambda opened: add_zip(opened, "x", b"/etc/passwd", kind=stat.S_IFLNK))
    assert "'x', which is a link or a device" in refusal(path)


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    def fill(opened: tarfile.TarFile) -> None:
        add_tar(opened, "x", b"one")
        add_tar(opened, "x", b"two")

    assert "two entries of one name" in refusal(make_tar(tmp_path / "a", fill))


def test_file_that_is_a_folder_too(tmp_path: Path) -> None:
    def fill(opened: tarfile.TarFile) -> None:
        add_tar(opened, "x", b"one")
        add_tar(opened, "x/y", b"two")

    assert "two entries of one name" in refusal(make_tar(tmp_path / "a", fill))


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MIN_LIMIT_BYTES", 4 << 20)


@pytest.mark.usefixtures("low_limit")
def test_bombs(tmp_path: Path) -> None:
    """A thousand times smaller than what comes out: in one file, in many, and in what a tar only passes over."""
    zeros = bytes(20 << 20)
    told = "unpacks to more than 0.0 GB, 200 times its own size"
    assert told in refusal(make_zip(tmp_path / "a", lambda opened: add_zip(opened, "x", zeros)))
    assert told in refusal(make_tar(tmp_path / "b", lambda opened: add_tar(opened, "x", zeros)))

    def fill(opened: zipfile.ZipFile) -> None:
        for number in range(20):
            add_zip(opened, str(number), zeros[: 1 << 20])

    assert told in refusal(make_zip(tmp_path / "c", fill))
    (tmp_path / "d").write_bytes(gzip.compress(b"\x00" * 511 + b"\x01" + zeros))
    assert refusal(tmp_path / "d")


def test_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    """A name of two megabytes in an extended header."""
    path = make_tar(
        tmp_path / "a", lambda opened: add_tar(opened, "x", b"n" * (2 << 20), type=tarfile.GNUTYPE_LONGNAME)
    )
    assert "a header of 2,097,152 bytes" in refusal(path)


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ENTRIES", 3)
    path = make_zip(tmp_path / "a", lambda opened: [add_zip(opened, str(number)) for number in range(4)])  # type: ignore[func-returns-value]
    assert "has more than 3 entries" in refusal(path)


@pytest.mark.parametrize("form", ["zip", "tar.gz", "text", "empty", "locked"])
def test_damaged_archives(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a"
    if form in ("zip", "locked"):
        make_zip(path, lambda opened: add_zip(opened, "x", os.urandom(100_000)))
        content = bytearray(path.read_bytes())
        if form == "locked":
            # The flag of encryption, in both places.
            content[6] |= 1
            content[content.rindex(b"PK\x01\x02") + 8] |= 1
        else:
            content[50_000] ^= 1
        path.write_bytes(content)
    elif form == "tar.gz":
        make_tar(path, lambda opened: add_tar(opened, "x", os.urandom(100_000)))
        path.write_bytes(path.read_bytes()[:50_000])
    else:
        path.write_bytes(b"no archive at all" * 100 if form == "text" else b"")
    told = "is encrypted" if form == "locked" else "is damaged or no .zip, .tar or .tar.gz archive"
    assert told in refusal(path)


def test_full_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .zip is refused before it is unpacked, a .tar as soon as there is no room left."""
    zipped = make_zip(tmp_path / "a", lambda opened: add_zip(opened, "x", bytes(2 << 20)))
    tarred = make_tar(tmp_path / "b", lambda opened: add_tar(opened, "x", bytes(2 << 20)))
    for path, free, came_out in ((zipped, 65 << 20, 0), (tarred, 64 << 20, 2 << 20)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(total=1 << 40, free=free))
        told = [0]
        with pytest.raises(StageError) as caught:
            run(path, lambda size, name, told=told: told.append(size))
        assert caught.value.reason is Reason.STORAGE_FULL
        assert sum(told) == came_out


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_told_whatever_the_compression(tmp_path: Path, kind: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as opened:
        opened.writestr("train.json", b"0123456789" * 5000)
    whole = stream.getvalue()
    with zipfile.ZipFile(stream) as opened:
        begin = opened.getinfo("train.json").header_offset + 40
    for at in range(begin, begin + 40, 3):
        damaged = bytearray(whole)
        damaged[at : at + 8] = bytes(8) if any(whole[at : at + 8]) else b"\xff" * 8
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(StageError) as caught:
            run(tmp_path / "a.zip")
        assert caught.value.reason is Reason.SOURCE_REFUSED
        assert caught.value.message.startswith("spec.dataset.source: https://h/a ")


def test_disk_s_own_errors_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", lambda opened: add_zip(opened, "train.json", b"x"))

    def fail(self: object, size: int = -1) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    with pytest.raises(OSError, match="Input/output"):
        run(path)
