"""One digest of all that decides what a shard's answers are: who goes on from rows must get the same ones.

Within one run, models and images are told apart by their files' names, sizes and times of change: reading 14 GB for
each pod would take longer than what it saves. A merged model's own digest, which merging has recorded, comes on top.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

_VERSION = 1
"""To be raised with every change of how questions are put to a model, or of what is noted of an answer."""
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def digest_inputs(parts: Mapping[str, object], prompts: Iterable[tuple[str, Iterable[int], Iterable[Path]]]) -> str:
    """The digest.

    Args:
        parts: settings and models, as JSON can hold them.
        prompts: of each that is put to a model its name, its token ids, and the files of its images.

    Raises:
        OSError: an image is not there.
    """
    whole = {**parts, "version": _VERSION, "libraries": {name: version(name) for name in _LIBRARIES}}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode())
    for name, ids, images in prompts:
        line = [name, list(ids), [identify(image) for image in images]]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def identify(path: Path) -> list[object]:
    """What tells a file, or the files of a folder, from others in its place.

    Raises:
        OSError: it is not there.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    known = ((file.name, file.stat()) for file in files if file.is_file())
    return [[name, about.st_size, about.st_mtime_ns] for name, about in known]
