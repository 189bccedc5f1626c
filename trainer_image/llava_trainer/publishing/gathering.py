"""What a run publishes: the files that merging and training have recorded, and what is written about them.

Only what is recorded is published: links, and whatever else may lie in the folders of the run's volume, are not.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.text import show
from llava_trainer.attempts.asked import ASKED, describe_request
from llava_trainer.attempts.finished import read_digests
from llava_trainer.errors import StageError
from llava_trainer.files import begin_folder, publish_folder, sha256_file, sha256_listing, write_whole
from llava_trainer.merging.manifest import MANIFEST, Manifest
from llava_trainer.publishing.companions import select_processor, sign, write_companions
from llava_trainer.publishing.content import PUBLICATION, Content, Item, What, order_items
from llava_trainer.publishing.publication import describe_publication
from llava_trainer.publishing.refusals import damaged, refused
from llava_trainer.sources.remote import check_name

_MAX_MANIFEST_BYTES = 16 << 20
_FIX = "look at the run's volume, and train or merge again in another run"


def list_contents(config: RunConfig) -> tuple[What, ...]:
    """What ``spec.publish.what`` asks for, the merged model first.

    Raises:
        StageError: DestinationRefused; an adapter is asked for, and the run has made none.
    """
    assert config.publish is not None, "the stage runs where it is set"
    what = config.publish.what
    if what != "merged" and config.training.method not in ("lora", "qlora"):
        raise refused(
            f"spec.publish.what is {what}, but spec.training.method {config.training.method} makes no adapter: "
            "publish merged"
        )
    return ("merged", "adapter") if what == "both" else (what,)


def gather_contents(config: RunConfig, secrets: Path) -> tuple[Content, ...]:
    """Everything that is to be published, with what is written about it in the attempt's own folder.

    Args:
        config: the run configuration.
        secrets: where Secrets are mounted.

    Raises:
        StageError: ResultDamaged; a file is not what it was when it was made, or nothing tells what it was.
            DestinationRefused; what is asked for was not made, or cannot be signed.
        OSError: the volume cannot be read or written.
    """
    folder = config.volume.publication_dir
    aside = begin_folder(folder)
    made = {what: _write_about(config, what, aside / what, secrets) for what in list_contents(config)}
    write_whole(aside / Path(ASKED).name, describe_request(config))
    publish_folder(folder)
    return tuple(
        Content(what=what, items=order_items([*items, *_list_files(folder / what)])) for what, items in made.items()
    )


def _write_about(config: RunConfig, what: What, folder: Path, secrets: Path) -> Sequence[Item]:
    """Write card, provenance, list and signature of a content into ``folder``; its files without these."""
    items = list_merged(config) if what == "merged" else (*list_adapter(config), *select_processor(list_merged(config)))
    folder.mkdir()
    write_companions(config, what, items, folder)
    taken = {item.name for item in items} & {item.name for item in _list_files(folder)}
    if taken:
        raise damaged(f"{config.volume.merged_dir} holds {show(min(taken))}, which publishing writes itself: {_FIX}")
    text = describe_publication(config.run, what, [*items, *_list_files(folder)])
    write_whole(folder / PUBLICATION, text)
    sign(config, what, order_items([*items, *_list_files(folder)]), folder, secrets)
    return items


def list_merged(config: RunConfig) -> tuple[Item, ...]:
    """The files of the merged model, with the digests that merging has written down; none of them is read.

    Raises:
        StageError: ResultDamaged.
    """
    folder = config.volume.merged_dir
    path = folder / MANIFEST
    try:
        size = path.stat().st_size
        if size > _MAX_MANIFEST_BYTES:
            raise damaged(f"{path} has {size:,} bytes, which no list of files has: {_FIX}")
        manifest = Manifest.model_validate_json(path.read_bytes())
        own = sha256_file(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValidationError) as error:
        raise damaged(f"{path}, which lists the merged model's files, cannot be read: {_FIX}") from error
    digests = {name: f"sha256:{file.sha256}" for name, file in manifest.files.items()}
    _check_recorded(config, StageName.MERGE, "merged", sha256_listing({**digests, MANIFEST: own}))
    return (
        *(_item(folder, name, file.size, file.sha256) for name, file in manifest.files.items()),
        _item(folder, MANIFEST, size, own.removeprefix("sha256:")),
    )


def list_adapter(config: RunConfig) -> tuple[Item, ...]:
    """The files of the adapter, each read and hashed: training has recorded one digest of all of them.

    Raises:
        StageError: ResultDamaged.
        OSError: the volume cannot be read.
    """
    folder = config.volume.adapter_dir
    items = _list_files(folder) if folder.is_dir() else ()
    digest = sha256_listing({item.name: f"sha256:{item.sha256}" for item in items})
    _check_recorded(config, StageName.TRAIN, "adapter", digest)
    return tuple(_item(folder, item.name, item.size, item.sha256) for item in items)


def _check_recorded(config: RunConfig, stage: StageName, name: str, digest: str) -> None:
    recorded = read_digests(config, stage).get(name)
    if recorded != digest:
        made = f"was {recorded} when it was made" if recorded else "nothing tells what it was when it was made"
        raise damaged(f"{config.volume.result_dir(stage) / name} is {digest}, and {made}: {_FIX}")


def _item(folder: Path, name: str, size: int, sha256: str) -> Item:
    try:
        plain = check_name(name, "the list of files", str(folder))
    except StageError as error:
        raise StageError(Reason.RESULT_DAMAGED, error.message) from error
    if plain != name:
        raise damaged(f"{folder} holds {show(name)}, which is no name below a folder: {_FIX}")
    return Item(name=name, path=folder / name, size=size, sha256=sha256)


def _list_files(folder: Path) -> tuple[Item, ...]:
    """The plain files of a folder, read and hashed. What a link leads to is none of them."""
    found = []
    for path in sorted(folder.rglob("*")):
        known = path.lstat()
        if stat.S_ISREG(known.st_mode):
            name = os.fspath(path.relative_to(folder))
            found.append(
                Item(name=name, path=path, size=known.st_size, sha256=sha256_file(path).removeprefix("sha256:"))
            )
    return tuple(found)
