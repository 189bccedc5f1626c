"""Archives, unpacked as if their maker were an enemy.

Nothing lands outside, links and devices are refused, and what comes out is bounded by the archive's own size and by
the volume's free space.
"""

import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, Self, cast

from llava_trainer.files import begin_folder, make_folder, publish_folder
from llava_trainer.sources.refusals import refused
from llava_trainer.sources.remote import check_name
from llava_trainer.sources.room import check_space
from llava_trainer.sources.transfer import CHUNK_BYTES

MAX_FACTOR = 200
"""Most that content may be larger than its archive: JSON reaches about 30, pictures about 1."""
MIN_LIMIT_BYTES = 1 << 30
"""Small archives may hold so much all the same."""
MAX_ENTRIES = 5_000_000
_MAX_HEADER_BYTES = 1 << 20
"""Of a name in a tar archive; they are read into memory."""
_SAYS_UTF8 = 0x800
"""Flag of a .zip's entry."""
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, struct.error,
    ValueError, IndexError, OverflowError, NotImplementedError,
)  # fmt: skip
"""What reading a damaged archive raises."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class _Entry:
    name: str
    is_folder: bool
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, *, field: str, address: str, on_bytes: Callable[[int, str], None]) -> int:
    """Unpack ``archive`` to ``folder``, which appears when it is whole; returns the number of files.

    Args:
        archive: .zip, .tar, .tar.gz or .tgz, told by its content.
        folder: what stood there before is replaced.
        field: the source's field, for messages.
        address: the source, for messages.
        on_bytes: told of every piece, with the file's name.

    Raises:
        StageError: SourceRefused, naming the entry that cannot be; StorageFull.
    """
    where = f"{field}: {address}"
    limit = max(MIN_LIMIT_BYTES, MAX_FACTOR * archive.stat().st_size)
    aside = begin_folder(folder)
    num_files = 0
    total = 0
    try:
        check_space(aside, _declared_bytes(archive), where)
        with _open(archive, where, limit) as entries:
            for number, entry in enumerate(entries, start=1):
                if number > MAX_ENTRIES:
                    raise refused(f"{where} has more than {MAX_ENTRIES:,} entries")
                target = aside / check_name(entry.name, field, address)
                if entry.is_folder:
                    make_folder(target)
                    continue
                make_folder(target.parent)
                for size in _write(entry, target):
                    total += size
                    if total > limit:
                        raise _too_large(where, limit)
                    on_bytes(size, entry.name)
                num_files += 1
                check_space(aside, 1, where)
    except _BROKEN as error:
        raise refused(f"{where} is damaged or no .zip, .tar or .tar.gz archive: {error}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise refused(f"{where} holds two entries of one name: {error.filename}") from error
    except RuntimeError as error:
        # zipfile's word for a password.
        raise refused(f"{where} cannot be unpacked: {error}") from error
    publish_folder(folder, at_once=True)
    return num_files


def _declared_bytes(archive: Path) -> int:
    """What a .zip says that it holds; 0 for a .tar, which says so only piece by piece."""
    if not zipfile.is_zipfile(archive):
        return 0
    with zipfile.ZipFile(archive) as opened:
        return sum(info.file_size for info in opened.infolist())


def _too_large(where: str, limit: int) -> Exception:
    return refused(
        f"{where} unpacks to more than {limit / 1e9:,.1f} GB, {MAX_FACTOR} times its own size: not unpacked further"
    )


def _write(entry: _Entry, target: Path) -> Iterator[int]:
    with entry.open() as source, target.open("xb") as stream:
        while chunk := _read(source):
            stream.write(chunk)
            yield len(chunk)


def _read(source: IO[bytes]) -> bytes:
    try:
        return source.read(CHUNK_BYTES)
    except OSError as error:
        if error.errno is None:
            # bz2's word for damage; the disk's errors have a number.
            raise zipfile.BadZipFile(str(error)) from error
        raise


@contextmanager
def _open(archive: Path, where: str, limit: int) -> Iterator[Iterator[_Entry]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _read_zip(opened, where)
        return
    with archive.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if is_gzip:
            with gzip.open(raw) as unzipped:
                yield _read_tar(_Counted(unzipped, where, limit), where)
        else:
            yield _read_tar(raw, where)


def _read_zip(opened: zipfile.ZipFile, where: str) -> Iterator[_Entry]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _no_file(where, info.filename)
        yield _Entry(name=_true_name(info), is_folder=info.is_dir(), open=lambda info=info: opened.open(info))  # type: ignore[misc]


def _true_name(info: zipfile.ZipInfo) -> str:
    """Name of an entry: many programs write UTF-8 without saying so, which zipfile takes for code page 437."""
    if info.flag_bits & _SAYS_UTF8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _read_tar(stream: _Readable, where: str) -> Iterator[_Entry]:
    # "r|": read once from front to end, never sought in.
    with tarfile.open(fileobj=cast(Any, stream), mode="r|", tarinfo=_BoundedInfo) as opened:
        for info in opened:
            if (not info.isfile() and not info.isdir()) or info.issparse():
                raise _no_file(where, info.name)
            if info.name not in (".", "./"):
                yield _Entry(name=info.name, is_folder=info.isdir(), open=lambda info=info: _content(opened, info))  # type: ignore[misc]
            # It keeps every entry that it has seen.
            opened.members.clear()  # type: ignore[attr-defined]


def _content(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = opened.extractfile(info)
    assert content is not None, "it is a regular file"
    return content


def _no_file(where: str, name: str) -> Exception:
    return refused(f"{where} holds {name!r:.100}, which is a link or a device: pack plain files and folders only")


class _BoundedInfo(tarfile.TarInfo):
    """Refuses a long name that is longer than any name: tarfile reads it into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if not info.isfile() and not info.isdir() and info.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


class _Counted:
    """A decompressed stream that ends in a refusal at its limit, whatever is done with what it gives."""

    def __init__(self, stream: _Readable, where: str, limit: int) -> None:
        self._stream = stream
        self._where = where
        self._limit = limit
        # Headers, and filling up to whole blocks, come on top of the content.
        self._left = limit + limit // 2

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._where, self._limit)
        return data
