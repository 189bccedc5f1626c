"""A folder of an S3 bucket.

Every file is a multipart upload: nothing of it is visible until it is completed, and another attempt finds its parts.
All parts of all files are sent first, then the uploads are completed, the weights first and ``publication.json`` last.
What stands there already is compared by its ETag, which follows from the parts' MD5; the server checks each part
against the signature. boto3's own transfers know neither: they begin anew, and a small file is visible at once.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llava_api.text import show
from llava_trainer.publishing.bucket_client import BucketFolder, SentPart
from llava_trainer.publishing.content import Content, Item, open_item
from llava_trainer.publishing.destination import Place, Sent
from llava_trainer.publishing.parts import PART_BYTES, Part, digest_parts, etag_of, read_part
from llava_trainer.publishing.refusals import refused, unavailable
from llava_trainer.sources.remote import bare_etag

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Upload:
    """A file that is there and not visible yet."""

    item: Item
    parts: Sequence[Part]
    id: str
    sent: Sequence[SentPart]


class BucketDestination:
    """A folder of a bucket; see ``Destination``.

    Args:
        place: where.
        part_bytes: see ``digest_parts``; S3 wants 5 MiB at least.

    Raises:
        StageError: SourceRefused, if a key of the Secret is none.
    """

    def __init__(self, place: Place, *, part_bytes: int = PART_BYTES) -> None:
        self._place = place
        self._part_bytes = part_bytes
        self._folder = BucketFolder(place)

    def publish(self, content: Content, on_bytes: Callable[[int], None]) -> Sent:
        """See ``Destination.publish``."""
        standing = self._list_standing({item.name for item in content.items})
        begun = {item.name: self._folder.list_uploads(item.name) for item in content.items}
        sent, done, uploads = 0, 0, []
        for item in content.items:
            parts = digest_parts(item, self._part_bytes)
            if item.name in standing:
                self._check_same(item, parts)
            else:
                upload, num_bytes = self._upload(item, parts, begun.get(item.name, ()), done, on_bytes)
                uploads.append(upload)
                sent += num_bytes
            done += item.size
            on_bytes(done)
        for upload in uploads:
            self._place.check_attempt()
            self._folder.complete(upload.item.name, upload.id, upload.sent)
            self._check_same(upload.item, upload.parts)
        used = {upload.id for upload in uploads}
        self._abort((name, id) for name, ids in begun.items() for id in ids if id not in used)
        return Sent(sent_bytes=sent, was_there=not uploads)

    def _list_standing(self, known: set[str]) -> set[str]:
        """Those of the files that stand there.

        Raises:
            StageError: DestinationRefused; something else stands there, too.
        """
        found = {name for name in self._folder.list_objects() if not self._is_beside(name)}
        if other := found - known:
            raise self._refuse_other(f"{show(min(other), max_chars=100)}, which is no part of this publication")
        return found

    def _is_beside(self, name: str) -> bool:
        return bool(self._place.beside) and name.startswith(f"{self._place.beside}/")

    def _upload(
        self, item: Item, parts: Sequence[Part], begun: Sequence[str], done: int, on_bytes: Callable[[int], None]
    ) -> tuple[_Upload, int]:
        """Send what is missing of a file; the upload, and how many bytes were sent."""
        upload_id, there = self._find_upload(item, parts, begun)
        num_bytes = 0
        with open_item(item) as stream:
            for part in parts:
                if part.number not in there:
                    self._place.check_attempt()
                    content = read_part(stream, item, part)
                    there[part.number] = self._folder.send_part(item.name, upload_id, part, content)
                    num_bytes += part.size
                on_bytes(done + part.offset + part.size)
        sent = [there[part.number] for part in parts]
        return _Upload(item=item, parts=parts, id=upload_id, sent=sent), num_bytes

    def _find_upload(self, item: Item, parts: Sequence[Part], begun: Sequence[str]) -> tuple[str, dict[int, SentPart]]:
        """The upload that has most of the file's parts, a new one if none has any; the parts that it has, by number."""
        best: tuple[str, dict[int, SentPart]] | None = None
        for upload_id in begun:
            have = self._list_parts(item, parts, upload_id)
            if have and (best is None or len(have) > len(best[1])):
                best = (upload_id, have)
        return best or (self._folder.begin_upload(item.name, item.sha256), {})

    def _list_parts(self, item: Item, parts: Sequence[Part], upload_id: str) -> dict[int, SentPart]:
        """An upload's parts, by number, if all are the file's.

        None of one that has others, or none yet: another run, which may be at it, has begun it, and has told what its
        own file hashes to. So may one whose parts are all the file's as far as they go; there an ETag tells more.
        """
        wanted = {part.number: (part.size, part.md5.hex()) for part in parts}
        have = {part.number: part for part in self._folder.list_parts(item.name, upload_id)}
        is_ours = all(wanted.get(number) == (part.size, bare_etag(part.etag)) for number, part in have.items())
        return have if is_ours else {}

    def _check_same(self, item: Item, parts: Sequence[Part]) -> None:
        """Make sure that what stands there is the file.

        Raises:
            StageError: DestinationRefused; it is another one. DestinationUnavailable; it is gone.
        """
        found = self._folder.look(item.name)
        if found is None:
            raise unavailable(f"{self._folder.what}: {item.name} was there and is gone: somebody deletes there")
        is_same = found.sha256 == item.sha256 if found.is_opaque else found.etag == etag_of(parts)
        if found.size != item.size or not is_same:
            raise self._refuse_other(f"another {item.name}")

    def _abort(self, uploads: Iterable[tuple[str, str]]) -> None:
        """Get rid of uploads of what stands there by now: they cost as much as objects, and nobody sees them."""
        for name, upload_id in uploads:
            self._place.check_attempt()
            if self._folder.abort(name, upload_id):
                logger.info("%s: an upload of %s that was left behind is aborted", self._folder.what, name)

    def _refuse_other(self, what: str) -> Exception:
        return refused(
            f"{self._folder.what} holds {what}: name another folder, or empty this one if nobody needs it, and raise "
            "spec.retry"
        )
