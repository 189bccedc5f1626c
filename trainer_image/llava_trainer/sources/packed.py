"""An archive, fetched aside, unpacked once, and thrown away: what it held stays."""

import hashlib
import logging
from pathlib import Path

from pydantic import ValidationError

from llava_api.base import Lenient
from llava_trainer.attempts.takeover import earlier_of, take_over_folder
from llava_trainer.files import make_folder, write_whole
from llava_trainer.sources.archive import unpack
from llava_trainer.sources.journal import Journal
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.remote import RemoteFile
from llava_trainer.sources.transfer import Downloader

MARKER = "unpacked.json"
ARCHIVE_SUFFIX = "-archive"
"""Of the folder beside what was unpacked, where its archive lies meanwhile."""

logger = logging.getLogger(__name__)


class _Unpacked(Lenient):
    identity: str
    sha256: str


def fetch_and_unpack(
    remote: RemoteFile, identity: str, *, keep: Path, folder: Path, downloader: Downloader, progress: Progress
) -> None:
    """Fetch an archive and unpack it to ``folder``, unless an earlier attempt has.

    Args:
        remote: the archive; its name is that of a file.
        identity: what tells it from another one: address, and commit or digest.
        keep: folder for the archive meanwhile, and for the word that it was unpacked.
        folder: appears when it is whole.
        downloader: fetches it.
        progress: told what comes in, and what comes out.

    Raises:
        StageError: SourceRefused, SourceUnavailable or StorageFull.
    """
    what = f"{downloader.field} {remote.address}"
    # A digest, because there may be a signature in an address.
    identity = hashlib.sha256(identity.encode()).hexdigest()
    if _is_done(keep / MARKER, identity) and folder.is_dir():
        logger.info("%s has been unpacked already", what)
        return
    for earlier in earlier_of(keep):
        if _is_done(earlier / MARKER, identity) and take_over_folder(folder):
            make_folder(keep)
            write_whole(keep / MARKER, (earlier / MARKER).read_text(encoding="utf-8"))
            logger.info("%s has been unpacked by an earlier attempt", what)
            return
    progress.begin(what, remote.size or 0)
    with Journal(keep) as journal:
        fetched = downloader.fetch(remote, journal)
    progress.begin(f"{what}: unpacking it")
    num_files = unpack(
        keep / fetched.name, folder, field=downloader.field, address=remote.address, on_bytes=progress.add
    )
    write_whole(keep / MARKER, _Unpacked(identity=identity, sha256=fetched.sha256).model_dump_json())
    (keep / fetched.name).unlink()
    logger.info("%s held %d files (sha256 %s)", what, num_files, fetched.sha256)


def _is_done(marker: Path, identity: str) -> bool:
    try:
        return _Unpacked.model_validate_json(marker.read_bytes()).identity == identity
    except (FileNotFoundError, ValidationError):
        return False
