"""Archives: fetched aside, unpacked once as if their maker were an enemy, and thrown away.

Nothing lands outside, links and devices are refused, and what comes out is bounded by the archive's own size and by
the volume's free space.
"""

import contextlib
import functools
import gzip
import hashlib
import logging
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

from llava_api.base import Lenient
from llava_trainer.attempts.takeover import earlier_of, take_over_folder
from llava_trainer.files import begin_folder, check_space, make_folder, publish_folder, write_whole
from llava_trainer.sources.fetched import read_note
from llava_trainer.sources.journal import Journal
from llava_trainer.sources.refusals import refused
from llava_trainer.sources.remote import RemoteFile, check_name
from llava_trainer.sources.transfer import CHUNK_BYTES, Downloader

MARKER = "unpacked.json"
ARCHIVE_SUFFIX = "-archive"
"""Of the folder beside what was unpacked, where its archive lies meanwhile."""
MAX_FACTOR = 200
"""Most that content may be larger than its archive: JSON reaches about 30, images about 1."""
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

logger = logging.getLogger(__name__)


class _Unpacked(Lenient):
    identity: str
    sha256: str


def fetch_and_unpack(remote: RemoteFile, identity: str, *, keep: Path, folder: Path, downloader: Downloader) -> None:
    """Fetch an archive and unpack it to ``folder``, unless an earlier attempt has.

    Args:
        remote: the archive; its name is that of a file.
        identity: what tells it from another one: address, and commit or digest.
        keep: folder for the archive meanwhile, and for the word that it was unpacked.
        folder: appears when it is whole.
        downloader: fetches it, and tells what comes in and out.

    Raises:
        StageError: SourceRefused, SourceUnavailable or StorageFull.
    """
    what = f"{downloader.field} {remote.address}"
    # A digest, because there may be a signature in an address.
    identity = hashlib.sha256(identity.encode()).hexdigest()
    if _is_done(keep, identity) and folder.is_dir():
        logger.info("%s has been unpacked already", what)
        return
    for earlier in earlier_of(keep):
        if _is_done(earlier, identity) and take_over_folder(folder):
            make_folder(keep)
            write_whole(keep / MARKER, (earlier / MARKER).read_text(encoding="utf-8"))
            logger.info("%s has been unpacked by an earlier attempt", what)
            return
    downloader.progress.begin(what, remote.size or 0)
    with Journal(keep) as journal:
        fetched = downloader.fetch(remote, journal)
    downloader.progress.begin(f"{what}: unpacking it")
    num_files = unpack(
        keep / fetched.name, folder, field=downloader.field, address=remote.address, on_bytes=downloader.progress.add
    )
    write_whole(keep / MARKER, _Unpacked(identity=identity, sha256=fetched.sha256).model_dump_json())
    (keep / fetched.name).unlink()
    logger.info("%s held %d files (sha256 %s)", what, num_files, fetched.sha256)


def _is_done(keep: Path, identity: str) -> bool:
    done = read_note(keep / MARKER, _Unpacked)
    return done is not None and done.identity == identity


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
        with contextlib.closing(_read_entries(archive, where, limit)) as entries:
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


def _read_entries(archive: Path, where: str, limit: int) -> Generator[_Entry]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            # A .tar says what it holds only piece by piece.
            check_space(archive.parent, sum(info.file_size for info in opened.infolist()), where)
            yield from _read_zip(opened, where)
        return
    with archive.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not is_gzip:
            yield from _read_tar(raw, where)
            return
        with gzip.open(raw) as unzipped:
            yield from _read_tar(_Counted(unzipped, where, limit), where)


def _read_zip(opened: zipfile.ZipFile, where: str) -> Iterator[_Entry]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _no_file(where, info.filename)
        yield _Entry(name=_true_name(info), is_folder=info.is_dir(), open=functools.partial(opened.open, info))


def _true_name(info: zipfile.ZipInfo) -> str:
    """Name of an entry: many programs write UTF-8 without saying so, which zipfile takes for code page 437."""
    if info.flag_bits & _SAYS_UTF8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


def _read_tar(stream: Any, where: str) -> Iterator[_Entry]:
    # "r|": read once from front to end, never sought in.
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedInfo) as opened:
        for info in opened:
            if (not info.isfile() and not info.isdir()) or info.issparse():
                raise _no_file(where, info.name)
            if info.name not in (".", "./"):
                content = cast(Callable[[], IO[bytes]], functools.partial(opened.extractfile, info))
                yield _Entry(name=info.name, is_folder=info.isdir(), open=content)
            # It keeps every entry that it has seen.
            opened.members.clear()  # type: ignore[attr-defined]


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

    def __init__(self, stream: gzip.GzipFile, where: str, limit: int) -> None:
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
