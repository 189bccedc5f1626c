"""One file of a dataset to samples, in whichever format the spec names."""

from collections.abc import Callable, Iterator
from pathlib import Path

from llava_api.spec import Dataset, Messages, Table, Ubiai
from llava_trainer.data.box_heights import BoxHeights
from llava_trainer.data.conversations import read_conversations
from llava_trainer.data.embedded import Keep
from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.findings import Finding, refused
from llava_trainer.data.messages import read_messages
from llava_trainer.data.recognition import find_wrong_kind
from llava_trainer.data.samples import Sample
from llava_trainer.data.table import read_table
from llava_trainer.data.ubiai import read_ubiai

Resolve = Callable[[str], Path]
"""Where a file of the dataset lies; raises ValueError or OSError if it may not be read."""


def read_export(
    dataset: Dataset,
    name: str,
    resolve: Resolve,
    keep: Keep,
    position: ReadingPosition,
    heights: BoxHeights | None = None,
) -> Iterator[Sample | Finding]:
    """Read a file in the dataset's format.

    Args:
        dataset: names the format, and how to read it.
        name: the file, relative to the dataset's folder; what messages call it, too.
        resolve: finds it, and what belongs to it.
        keep: keeps the images that it holds.
        position: kept up to date.
        heights: counts how high texts are, where the format tells.

    Yields:
        A sample, or what was found, in the order of the file.

    Raises:
        ValueError, OSError: of ``resolve``: the file is not there.
    """
    path = resolve(name)
    try:
        problem = find_wrong_kind(path, dataset.format)
    except OSError as error:
        problem = f"cannot be read: {error}"
    if problem is not None:
        yield refused(name, problem)
    elif dataset.format == "llava":
        yield from read_conversations(path, name, position)
    elif dataset.format == "table":
        yield from read_table(path, name, dataset.table or Table(), keep, position)
    elif dataset.format == "messages":
        yield from read_messages(path, name, dataset.messages or Messages(), keep, position)
    else:
        yield from read_ubiai(name, dataset.ubiai or Ubiai(), resolve, position, heights)
