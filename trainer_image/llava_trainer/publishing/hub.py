"""hf://: a model in a repository of the hub, by one commit on top of its branch.

What stood there stays in the history. Files of an earlier publication that this one does not have are deleted by the
same commit; files of others stay, and where one of them has the name of one of ours, or would be loaded with the model,
nothing is published. Large files are brought to the hub's storage before, where a commit that never comes leaves them
unseen. The commit names the one that it was planned on: where somebody else has committed meanwhile, the hub refuses
it, and it is planned again.
"""

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from llava_api.text import show
from llava_trainer.publishing.content import PUBLICATION, SIGNATURE, Content, Item, read_chunks
from llava_trainer.publishing.destination import Place, Sent
from llava_trainer.publishing.hub_client import HubClient, MovedError, Standing
from llava_trainer.publishing.lfs import LfsStore
from llava_trainer.publishing.publication import MAX_BYTES, parse_publication
from llava_trainer.publishing.refusals import refused, unavailable
from llava_trainer.sources.credentials import read_credentials

_SCHEME = "hf://"
_MAIN = "main"
_CARD = "README.md"
_MAX_CARD_BYTES = 64 << 10
_BARE_CARD = re.compile(rb"\s*(---\r?\n.*?\r?\n---)?\s*", re.DOTALL)
"""What the hub puts into a repository that somebody makes on its pages: metadata, and no text."""
_LOADED = re.compile(
    r"[^/]*\.safetensors|(pytorch|adapter)_model[^/]*\.bin|[^/]*\.index\.json|adapter_config\.json|"
    r"chat_template\.(json|jinja)|(video_)?(pre)?processor_config\.json"
)
"""What transformers, PEFT and servers look for: model.safetensors before shards, adapter_config.json before all."""
_MAX_LOOKS = 5
_MAX_REGULAR_BYTES = 64 << 20
"""Of all files that lie in git itself, which travel in the commit; those of more than 10 MB the hub wants elsewhere."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a commit would change, by paths in the repository."""

    additions: Mapping[str, Item]
    deletions: Sequence[str]


def plan_commit(items: Mapping[str, Item], standing: Mapping[str, Standing], earlier: AbstractSet[str]) -> Plan:
    """What has to change for all of ``items`` to stand there.

    Args:
        items: what is to stand there, by path.
        standing: what stands in the repository.
        earlier: paths that an earlier publication has listed.

    Raises:
        StageError: ResultDamaged.
    """
    additions = {
        path: item for path, item in items.items() if path not in standing or not _is_same(item, standing[path])
    }
    return Plan(additions=additions, deletions=sorted((earlier & set(standing)) - set(items)))


def _is_same(item: Item, standing: Standing) -> bool:
    if standing.size != item.size:
        return False
    if standing.sha256 is not None:
        return standing.sha256 == item.sha256
    digest = hashlib.sha1(f"blob {item.size}\0".encode(), usedforsecurity=False)
    for chunk in read_chunks(item):
        digest.update(chunk)
    return digest.hexdigest() == standing.blob_id


class HubDestination:
    """One branch of a repository.

    Args:
        place: the destination.

    Raises:
        StageError: DestinationRefused or SourceRefused; address, Secret or the hub's own address cannot be used.
    """

    def __init__(self, place: Place) -> None:
        repository, at, branch = place.address.removeprefix(_SCHEME).partition("@")
        owner, _, name = repository.partition("/")
        if not (place.address.startswith(_SCHEME) and owner and name and "/" not in name and bool(at) == bool(branch)):
            raise refused(
                f"{place.field} is {show(place.address)} but must be hf://OWNER/NAME or hf://OWNER/NAME@BRANCH"
            )
        token = read_credentials(place.secrets, place.secret_field).token
        if token is None:
            raise refused(f"{place.secret_field}: the hub takes nothing from nobody: name a Secret with key token")
        self._place = place
        self._prefix = f"{place.folder}/" if place.folder else ""
        self._hub = HubClient(place, repository, branch or _MAIN, token)
        self._lfs = LfsStore(place, self._hub, branch or _MAIN)

    def publish(self, content: Content, on_bytes: Callable[[int], None]) -> Sent:
        """See ``Destination``. The revision is the commit."""
        items = {f"{self._prefix}{item.name}": item for item in content.items}
        sent_bytes = 0
        for num_late in range(_MAX_LOOKS):
            head = self._hub.prepare_branch()
            plan = self._plan(items, head)
            if not plan.additions and not plan.deletions:
                on_bytes(content.size)
                # A commit that was late may have been our own, whose answer was lost.
                return Sent(revision=head, sent_bytes=sent_bytes, was_there=num_late == 0)
            operations, num_bytes = self._bring(plan, content.size, on_bytes)
            sent_bytes += num_bytes
            self._place.check_attempt()
            try:
                commit = self._hub.commit(head, f"Publish the {content.what} model", operations)
            except MovedError:
                logger.info("%s: somebody else has committed meanwhile: looking again", self._place.what)
                continue
            return Sent(revision=commit, sent_bytes=sent_bytes)
        raise unavailable(
            f"{self._place.what}: somebody else commits to it all the time: {_MAX_LOOKS} commits were late"
        )

    def _plan(self, items: Mapping[str, Item], head: str) -> Plan:
        standing = self._hub.list_files(head)
        earlier = self._list_earlier(standing, head)
        plan = plan_commit(items, standing, earlier)
        for path in plan.additions:
            is_free = path not in standing or path in earlier or (path == _CARD and self._is_bare(standing[path], head))
            if not is_free:
                raise refused(
                    f"{self._place.what} holds {path}, which this project has not published: name another repository "
                    "or branch, or delete it there"
                )
        if plan.additions:
            self._check_beside(set(standing).difference(items, plan.deletions))
        return plan

    def _check_beside(self, others: AbstractSet[str]) -> None:
        for path in sorted(others):
            if path.startswith(self._prefix) and _LOADED.fullmatch(path.removeprefix(self._prefix)):
                raise refused(
                    f"{self._place.what} holds {show(path, max_chars=100)}, which this project has not published and "
                    "which would be loaded with the model: name another repository or branch, or delete it there"
                )

    def _list_earlier(self, standing: Mapping[str, Standing], head: str) -> frozenset[str]:
        """Paths of what was published to the same folder before."""
        path = f"{self._prefix}{PUBLICATION}"
        listing = standing.get(path)
        if listing is None or listing.size > MAX_BYTES:
            return frozenset()
        earlier = parse_publication(self._hub.read_file(head, path, MAX_BYTES))
        names = (*earlier.files, PUBLICATION, SIGNATURE) if earlier else ()
        return frozenset(f"{self._prefix}{name}" for name in names)

    def _is_bare(self, card: Standing, head: str) -> bool:
        """Whether a card holds metadata alone."""
        if card.size > _MAX_CARD_BYTES:
            return False
        return _BARE_CARD.fullmatch(self._hub.read_file(head, _CARD, _MAX_CARD_BYTES)) is not None

    def _bring(
        self, plan: Plan, size: int, on_bytes: Callable[[int], None]
    ) -> tuple[list[tuple[str, Mapping[str, Any]]], int]:
        """Bring large files to the storage; what the commit consists of, and bytes that were sent."""
        modes = self._hub.ask_modes(plan.additions)
        done = size - sum(item.size for item in plan.additions.values())
        small = sum(item.size for path, item in plan.additions.items() if modes[path] == "regular")
        if small > _MAX_REGULAR_BYTES:
            raise refused(
                f"{self._place.what}: the repository wants {small:,} bytes of files in git itself, where no more than "
                f"{_MAX_REGULAR_BYTES:,} go: have its .gitattributes name *.safetensors as filter=lfs"
            )
        operations: list[tuple[str, Mapping[str, Any]]] = []
        sent_bytes = 0
        for path, item in plan.additions.items():
            if modes[path] == "lfs":
                sent_bytes += self._lfs.push(item, _add_to(done, on_bytes))
                operations.append(("lfsFile", {"path": path, "algo": "sha256", "oid": item.sha256, "size": item.size}))
            else:
                packed = base64.b64encode(b"".join(read_chunks(item))).decode()
                operations.append(("file", {"path": path, "content": packed, "encoding": "base64"}))
                sent_bytes += item.size
            done += item.size
            on_bytes(done)
        return [*operations, *(("deletedFile", {"path": path}) for path in plan.deletions)], sent_bytes


def _add_to(done: int, on_bytes: Callable[[int], None]) -> Callable[[int], None]:
    return lambda num_bytes: on_bytes(done + num_bytes)
