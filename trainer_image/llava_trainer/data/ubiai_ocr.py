"""A UBIAI OCR archive: ``NAME.txt``, ``NAME_box.txt`` and ``NAME_image.txt``, aligned line by line, tab-separated.

``NAME.txt`` holds a word and its BIO tag a line, ``NAME_box.txt`` the word and its box ``x0 y0 x1 y1`` in thousandths
of the image, ``NAME_image.txt`` the word, its box in pixels, its image's width and height, and the image's name. Blank
lines separate documents; blocks that follow each other and are about one image are one document. Corners may be swapped
and boxes negative. The archive has no relations.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llava_trainer.data.box_heights import BoxHeights
from llava_trainer.data.entries import MAX_ENTRY_CHARACTERS, ReadingPosition
from llava_trainer.data.json_file import JsonFileError
from llava_trainer.data.ubiai_document import Document, Span

BOX_SUFFIX = "_box"
IMAGE_SUFFIX = "_image"
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class OcrDocument:
    """One document of an archive.

    Attributes:
        document: what is labelled; its name is that of the image.
        num_repaired: boxes whose corners were swapped or negative.
        num_orphans: tags that continue an entity which nothing began; they begin one.
    """

    document: Document
    num_repaired: int
    num_orphans: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Word:
    """One line of the three files."""

    text: str
    tag: str
    repaired: bool
    image: str
    image_size: tuple[float, float]
    """Width and height in pixels, as the archive has them."""
    box: tuple[float, float, float, float]
    """In these pixels."""


def read_ocr(
    words: Path, boxes: Path, images: Path, position: ReadingPosition, heights: BoxHeights | None = None
) -> Iterator[OcrDocument]:
    """Read an archive, one document at a time.

    Args:
        words: ``NAME.txt``.
        boxes: ``NAME_box.txt``.
        images: ``NAME_image.txt``.
        position: kept up to date.
        heights: counts how high the words are, if anything does.

    Raises:
        JsonFileError: the files are not aligned, or a line is wrong; the message names it. Documents before the place
            have been yielded.
    """
    building: _Building | None = None
    for word in _read_words(words, boxes, images, position):
        if word is None:
            if building is not None:
                building.pause()
            continue
        if building is not None and building.image != word.image:
            yield building.finish()
            building = None
        building = building or _Building(word.image)
        building.add(word)
        if heights is not None:
            heights.add(word.box, *word.image_size)
    if building is not None:
        yield building.finish()


class _Building:
    """A document while its words come in; words without a label are not kept."""

    def __init__(self, image: str) -> None:
        self.image = image
        self._spans: list[tuple[str, list[str]]] = []
        self._open = ""
        self._num_characters = 0
        self._num_repaired = 0
        self._num_orphans = 0

    def add(self, word: _Word) -> None:
        """Take in the next word."""
        self._num_repaired += word.repaired
        prefix, _, label = word.tag.partition("-")
        if prefix == "I" and label == self._open:
            self._spans[-1][1].append(word.text)
        elif prefix in ("B", "I"):
            self._num_orphans += prefix == "I"
            self._spans.append((label, [word.text]))
        self._open = label
        self._num_characters += len(word.text) if label else 0
        if self._num_characters > MAX_ENTRY_CHARACTERS:
            raise JsonFileError(f"labels more than {MAX_ENTRY_CHARACTERS:,} characters of {self.image}: divide it")

    def pause(self) -> None:
        """A blank line: no entity goes on behind it."""
        self._open = ""

    def finish(self) -> OcrDocument:
        """The whole document."""
        spans = tuple(
            Span(label=label, text=" ".join(texts), ranges=((index, index),))
            for index, (label, texts) in enumerate(self._spans)
        )
        return OcrDocument(
            document=Document(name=self.image, spans=spans),
            num_repaired=self._num_repaired,
            num_orphans=self._num_orphans,
        )


def _read_words(words: Path, boxes: Path, images: Path, position: ReadingPosition) -> Iterator[_Word | None]:
    """The lines of the three files side by side; None for a blank one."""
    with words.open("rb") as first, boxes.open("rb") as second, images.open("rb") as third:
        position.total_bytes += sum(path.stat().st_size for path in (words, boxes, images))
        streams = ((words.name, first), (boxes.name, second), (images.name, third))
        files = (_read_lines(name, stream, position) for name, stream in streams)
        for number, lines in enumerate(itertools.zip_longest(*files), start=1):
            filled = [bool(line) for line in lines]
            if any(line is None for line in lines) or (any(filled) and not all(filled)):
                raise JsonFileError(
                    f"line {number} does not stand in all of {words.name}, {boxes.name} and {images.name}: the three "
                    "must have the same lines; export the archive again"
                )
            try:
                yield _read_word(*lines) if all(filled) else None
            except ValueError as error:
                raise JsonFileError(f"line {number}: {error}") from error


def _read_lines(name: str, stream: BinaryIO, position: ReadingPosition) -> Iterator[str]:
    number = 0
    while line := stream.readline(_MAX_LINE_BYTES):
        number += 1
        position.read_bytes += len(line)
        if len(line) == _MAX_LINE_BYTES:
            raise JsonFileError(f"line {number} of {name} is longer than {_MAX_LINE_BYTES:,} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise JsonFileError(f"line {number} of {name} is not UTF-8 ({error.reason})") from error


def _read_word(word_line: str, box_line: str, image_line: str) -> _Word:
    text, tag = _split(word_line, 2, "a word and its tag")
    boxed, box = _split(box_line, 2, "a word and its box")
    shown, box_again, size, image = _split(image_line, 4, "a word, its box, its picture's size and name")
    if not text == boxed == shown:
        raise ValueError(f"the files are about different words: {text!r:.40}, {boxed!r:.40} and {shown!r:.40}")
    if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) < 3):
        raise ValueError(f"tag {tag!r:.40} is none of O, B-LABEL and I-LABEL")
    repaired = _needs_repair(_numbers(box, 4, "box x0 y0 x1 y1"))
    x0, y0, x1, y1 = _numbers(box_again, 4, "box x0 y0 x1 y1")
    width, height = _numbers(size, 2, "picture size")
    if min(width, height) <= 0:
        raise ValueError(f"picture size {size!r:.40} must be positive")
    if not image:
        raise ValueError("the picture's name is missing")
    return _Word(
        text=text, tag="" if tag == "O" else tag, repaired=repaired, image=image, image_size=(width, height),
        box=(x0, y0, x1, y1),
    )  # fmt: skip


def _split(line: str, count: int, what: str) -> list[str]:
    parts = line.rsplit("\t", count - 1)
    if len(parts) != count:
        raise ValueError(f"{line!r:.60} must be {what}, separated by tabs")
    return parts


def _numbers(text: str, count: int, what: str) -> list[float]:
    try:
        found = [float(part) for part in text.split()]
    except ValueError:
        found = []
    if len(found) != count or any(number != number or abs(number) == float("inf") for number in found):
        raise ValueError(f"{text!r:.40} is no {what}")
    return found


def _needs_repair(box: list[float]) -> bool:
    """Whether corners are swapped or negative. Boxes are not trained on, so that a wrong one costs nothing."""
    x0, y0, x1, y1 = box
    return x0 > x1 or y0 > y1 or min(box) < 0
