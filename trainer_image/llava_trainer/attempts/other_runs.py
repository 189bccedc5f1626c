"""What other runs have left on the same claim, where that was there before (``storage.existingClaim``).

Only what is whole and can be told to be the same is taken up, by a link or a copy: nothing of theirs is moved, changed
or deleted, so that each of them may go on. Their results are never taken for this run's own.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llava_api.constants import StageName
from llava_api.volume import RunVolume, claim_root, find_attempt_dir, parse_attempt, runs_dir
from llava_trainer.attempts.takeover import list_earlier
from llava_trainer.files import aside_of, begin_folder, publish_folder


def list_attempts_of_others(volume: RunVolume, stage: StageName) -> list[Path]:
    """Folders of a stage's attempts of other runs on the claim, the newest run's first; a later attempt first."""
    claim = claim_root(volume.root)
    if claim is None:
        return []
    roots = [root for root in (claim, *runs_dir(claim).glob("*")) if root != volume.root]
    found = [(_changed_at(folder), folder) for folder in (RunVolume(root=root).attempts_dir for root in roots)]
    return [one for _, folder in sorted(found, reverse=True) for one in _list_attempts(folder, stage)]


def others_of(path: Path) -> list[Path]:
    """Where other runs may have what an attempt of this one has, or is going to have, at ``path``."""
    own = find_attempt_dir(path)
    parsed = own and parse_attempt(own.name)
    if own is None or not parsed:
        return []
    volume = RunVolume(root=own.parent.parent)
    return [folder / path.relative_to(own) for folder in list_attempts_of_others(volume, parsed[0])]


def link_file(source: str | Path, target: str | Path) -> None:
    """Give a whole file, which nobody writes to any more, another name; its content, where the volume has no links.

    Raises:
        OSError: it is a link itself, or cannot be read or written.
    """
    source, target = Path(source), Path(target)
    if source.is_symlink():
        # It might lead anywhere.
        raise OSError(f"{source} is a link")
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        aside = aside_of(target)
        shutil.copyfile(source, aside)
        aside.rename(target)


def link_folder(source: Path, target: Path) -> None:
    """The same of a folder that is whole; ``target`` appears when it is, too.

    Raises:
        OSError: something of it is a link itself, or cannot be read or written.
    """
    aside = begin_folder(target)
    for path in sorted(source.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            (aside / path.relative_to(source)).mkdir()
        else:
            link_file(path, aside / path.relative_to(source))
    publish_folder(target, at_once=True)


def _list_attempts(folder: Path, stage: StageName) -> Iterator[Path]:
    found = (parsed for parsed in map(parse_attempt, _names_in(folder)) if parsed is not None)
    for number in sorted((number for of, number in found if of is stage), reverse=True):
        own = folder / f"{stage}-{number}"
        yield own
        yield from list_earlier(own)


def _names_in(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _changed_at(folder: Path) -> float:
    with suppress(OSError):
        return folder.stat().st_mtime
    return 0.0
