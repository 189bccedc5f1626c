"""A checked sample, and the file of samples that prepare hands on to training and evaluation."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llava_trainer.files import make_folder

Role = Literal["user", "assistant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a sample comes from, for messages: ``export.json[12].relations[0]``."""

    file: str
    index: int
    part: str = ""

    def __str__(self) -> str:
        return f"{self.file}[{self.index}]{self.part}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one side says, stripped of surrounding white space and without any ``<image>`` marker."""

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One conversation, about any number of images.

    Attributes:
        id: the export's own id, or one made from where it stands.
        images: paths of the images in the order in which they are shown, relative to the dataset's folder of
            images; whole paths where samples of several datasets are read as one (``mixed_samples``).
        turns: user and assistant in turn, beginning with the user, ending with the assistant.
        source: where it comes from.
        image_turns: for each image, the index in ``turns`` of the user turn that shows it; never decreasing.
        references: right answers to the last question, where there is more than one.
        question_type: what kind of question it is, for scores by kind.
        group: what it belongs to (a document, a patient), as the data names it; empty where it does not.
        system: replaces LLaVA's system text; empty where that stays.
        group_key: the same for all samples that must stay on one side of a split: those that name one group, show one
            image or are joined by others that do. Set in the files that prepare hands on.
        num_tokens: tokens of the whole conversation, images expanded, before anything is cut off; prepare counts
            them once for training to group by. 0: not counted.
        num_supervised: tokens of it that are learned, after it is cut off; counted in the same way. 0: not counted.

    Raises:
        ValueError: ``image_turns`` does not fit ``images`` and ``turns``.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    source: Source
    image_turns: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    question_type: str = ""
    group: str = ""
    system: str = ""
    group_key: str = ""
    num_tokens: int = 0
    num_supervised: int = 0

    def __post_init__(self) -> None:
        placed = self.image_turns
        if len(placed) != len(self.images):
            raise ValueError(f"{len(self.images)} pictures, but {len(placed)} turns that show one")
        if list(placed) != sorted(placed) or any(self._speaker(index) != "user" for index in placed):
            raise ValueError(f"image_turns {placed} must be user turns in their order")

    def pairs(self) -> Iterator[tuple[tuple[Turn, ...], Turn, Turn]]:
        """Every (turns before, question, answer) of the conversation."""
        for index in range(0, len(self.turns) - 1, 2):
            yield self.turns[:index], self.turns[index], self.turns[index + 1]

    def _speaker(self, index: int) -> Role | None:
        return self.turns[index].role if 0 <= index < len(self.turns) else None

    @property
    def num_pairs(self) -> int:
        """Questions with their answers."""
        return len(self.turns) // 2


def write_samples(path: Path, samples: Iterable[Sample]) -> int:
    """Write one JSON object a line, aside first and renamed when all is on the disk; returns how many."""
    return write_lines(path, (format_sample(sample).encode() for sample in samples))


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write samples that are lines already, in the same way; returns how many."""
    aside = path.with_name(f".{path.name}.partial")
    make_folder(path.parent)
    count = 0
    with aside.open("wb") as stream:
        for line in lines:
            stream.write(line)
            count += 1
        stream.flush()
        os.fsync(stream.fileno())
    aside.rename(path)
    return count


def format_sample(sample: Sample) -> str:
    """The line of a file of samples, with its end."""
    return json.dumps(asdict(sample), ensure_ascii=False) + "\n"


def read_samples(path: Path) -> Iterator[Sample]:
    """Read what ``write_samples`` wrote, one sample at a time.

    Raises:
        FileNotFoundError: prepare has not written it.
        ValueError: a line is not a sample (the file was damaged after it was written).
    """
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield parse_sample(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} line {number} is not a sample: {error!r}") from error


def parse_sample(fields: dict[str, Any]) -> Sample:
    """What one line of such a file says, read as JSON.

    Raises:
        ValueError, TypeError, KeyError: it is not a sample.
    """
    return Sample(
        id=fields["id"],
        images=tuple(fields["images"]),
        turns=tuple(Turn(**turn) for turn in fields["turns"]),
        source=Source(**fields["source"]),
        image_turns=tuple(fields["image_turns"]),
        references=tuple(fields["references"]),
        question_type=fields["question_type"],
        # Older images knew neither groups nor system messages.
        group=fields.get("group", ""),
        group_key=fields.get("group_key", ""),
        system=fields.get("system", ""),
        num_tokens=fields["num_tokens"],
        # Older images did not count them.
        num_supervised=fields.get("num_supervised", 0),
    )
