"""Many files of one source, several at a time."""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from llava_api.text import show
from llava_trainer.errors import StageError
from llava_trainer.files import check_space
from llava_trainer.retrying import StoppedError
from llava_trainer.sources.journal import Journal
from llava_trainer.sources.refusals import MissingError, refused, unavailable
from llava_trainer.sources.remote import Listed, RemoteFile
from llava_trainer.sources.transfer import Downloader

NUM_CONNECTIONS = 8
MAX_FILES = 5_000_000
_SIZE_BYTES = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What a source has.

    Attributes:
        address: of the source, for messages; with the commit where there is one.
        names: the files that there are; None where the server does not tell (https://).
        find: the file of a name; None if there is none.
    """

    address: str
    names: Collection[str] | None
    find: Callable[[str], RemoteFile | None]


def make_catalogue(
    address: str, listed: Iterable[Listed], locate: Callable[[Listed], RemoteFile], field: str
) -> Catalogue:
    """The catalogue of a source that lists its files. In memory are names, sizes and digests (about 250 bytes a file).

    Raises:
        StageError: SourceRefused, beyond ``MAX_FILES``; what listing raises.
    """
    files: dict[str, bytes] = {}
    for name, size, tag in listed:
        if not 0 <= size < 2**63:
            raise refused(
                f"{field}: {address} lists {show(name, max_chars=100)} with {size:,} bytes, which no file has"
            )
        # Size and tag in one: a tuple of them would be twice as large.
        files[name] = size.to_bytes(_SIZE_BYTES, "big") + tag
        if len(files) > MAX_FILES:
            raise refused(
                f"{field}: {address} holds more than {MAX_FILES:,} files: name a folder with fewer, or pack them"
            )

    def find(name: str) -> RemoteFile | None:
        known = files.get(name)
        if known is None:
            return None
        return locate(Listed(name, int.from_bytes(known[:_SIZE_BYTES], "big"), known[_SIZE_BYTES:]))

    return Catalogue(address=address, names=files.keys(), find=find)


@dataclass(frozen=True, kw_only=True)
class Downloads:
    """Fetches files of one source into one folder."""

    catalogue: Catalogue
    downloader: Downloader
    journal: Journal
    missing: set[str] = field(default_factory=set)
    """Names that were asked for and that the source does not have."""

    @property
    def folder(self) -> Path:
        """Where the files come to lie."""
        return self.journal.folder

    def fetch(self, names: Collection[str]) -> None:
        """Fetch what the source has of these files; ``missing`` tells what it has not.

        Raises:
            StageError: the first that one of them raised; the others are stopped.
        """
        total = there = 0
        wanted: list[str] = []
        for name in names:
            remote = self.catalogue.find(name)
            if remote is None:
                self.missing.add(name)
                continue
            wanted.append(name)
            if remote.size is not None:
                total += remote.size
                there += min(remote.size, self.journal.size_of(remote))
        what = f"{self.downloader.field} {self.catalogue.address}"
        self.downloader.progress.begin(what, total)
        check_space(self.downloader.volume, total - there, what)
        logger.info("fetching %d files of %s (%.2f GB)", len(wanted), what, total / 1e9)
        self._fetch_all(wanted)
        self.downloader.progress.end()

    def _fetch_all(self, wanted: Collection[str]) -> None:
        # What there is to know of each, when its turn comes: of a million files it would fill the memory.
        waiting = filter(None, map(self.catalogue.find, wanted))
        lock = threading.Lock()
        # Every worker takes from one iterator: a future for each of a million files would fill the memory.
        pool = ThreadPoolExecutor(max_workers=NUM_CONNECTIONS, thread_name_prefix="fetch")
        try:
            workers = [pool.submit(self._work, waiting, lock) for _ in range(min(NUM_CONNECTIONS, len(wanted)))]
            errors = [error for worker in workers if (error := worker.exception()) is not None]
        finally:
            # Also when the pod is asked to stop while this waits.
            self.downloader.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if errors:
            raise next((error for error in errors if isinstance(error, StageError)), errors[0])
        self.downloader.stop.clear()

    def _work(self, waiting: Iterator[RemoteFile], lock: threading.Lock) -> None:
        try:
            while not self.downloader.stop.is_set():
                with lock:
                    remote = next(waiting, None)
                if remote is None:
                    return
                try:
                    self.downloader.fetch(remote, self.journal)
                except StoppedError:
                    return
                except MissingError:
                    if self.catalogue.names is not None:
                        raise unavailable(
                            f"{self.downloader.field}: {remote.address} is listed, but the server does not have it any "
                            "more: create the run again when nobody writes there"
                        ) from None
                    self.missing.add(remote.name)
        except BaseException:
            self.downloader.stop.set()
            raise
