"""Every sample against everything that would fail on a GPU: its picture, its length, what it teaches."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llava_trainer.data.encode import PictureCutError, encode
from llava_trainer.data.findings import Finding, Findings, Kind, noted, refused
from llava_trainer.data.images import PictureError, PictureFacts, check_image, resolve_picture
from llava_trainer.data.processing import Processing
from llava_trainer.data.samples import Sample

_WINDOW = 64
"""Samples whose pictures are decoded together."""
_DECODERS = 2
"""Threads that decode pictures (Pillow lets go of the interpreter while it does)."""


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """Where pictures lie.

    Attributes:
        root: the dataset; nothing outside it is read.
        name: folder that picture paths are relative to, itself relative to ``root``; may be empty.
    """

    root: Path
    name: str = ""

    def resolve(self, relative: str) -> Path:
        """Where a picture lies.

        Raises:
            PictureError: it is not there, or outside the dataset.
        """
        return resolve_picture(self.root, self.root / self.name, relative)

    def display_name(self, relative: str) -> str:
        """What messages call a picture: its path below the dataset."""
        return f"{self.name.rstrip('/')}/{relative}" if self.name else relative


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A sample that can be trained on.

    Attributes:
        picture: facts of its picture; None without one.
        num_tokens: its whole length in tokens, before cutting off.
        num_supervised: tokens that are learned, after cutting off.
        num_characters: characters of the rendered conversation that are left after cutting off.
    """

    sample: Sample
    picture: PictureFacts | None
    num_tokens: int
    num_supervised: int
    num_characters: int

    @property
    def group(self) -> str:
        """What must stay on one side of a split: the picture's content, else the opening question."""
        return self.picture.digest if self.picture else f"text:{self.sample.turns[0].text}"


class Checker:
    """Checks samples; pictures are decoded once, however many samples are about them."""

    def __init__(self, folder: PictureFolder, processing: Processing, max_length: int, findings: Findings) -> None:
        self._folder = folder
        self._processing = processing
        self._max_length = max_length
        self._findings = findings
        self._special = sorted(processing.tokenizer.all_special_tokens)
        self.pictures: dict[str, PictureFacts | PictureError] = {}
        """What was found about each picture's path."""

    def check_all(
        self, items: Iterable[Sample | Finding], on_checked: Callable[[], None] = lambda: None
    ) -> Iterator[Checked]:
        """Check samples in order; findings among them are taken in where they stand.

        Args:
            items: what a reader yields.
            on_checked: called after each sample.
        """
        with ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode") as pool:
            for window in _windows(items, _WINDOW):
                self._decode([item for item in window if isinstance(item, Sample)], pool)
                for item in window:
                    if isinstance(item, Finding):
                        self._findings.add(item)
                        continue
                    checked = self._check(item)
                    if isinstance(checked, Finding):
                        self._findings.add(checked)
                    else:
                        yield checked
                    on_checked()

    def check_picture(self, relative: str) -> PictureError | None:
        """What is wrong with one picture, if anything."""
        found = self.pictures.get(relative) or self._look_at(relative)
        self.pictures[relative] = found
        return found if isinstance(found, PictureError) else None

    def _decode(self, samples: list[Sample], pool: ThreadPoolExecutor) -> None:
        wanted = {path for sample in samples for path in sample.images} - self.pictures.keys()
        ordered = sorted(wanted)
        self.pictures.update(zip(ordered, pool.map(self._look_at, ordered), strict=True))

    def _look_at(self, relative: str) -> PictureFacts | PictureError:
        try:
            return check_image(self._folder.resolve(relative))
        except PictureError as error:
            return error

    def _check(self, sample: Sample) -> Checked | Finding:
        pictures = [self.pictures[path] for path in sample.images]
        for path, picture in zip(sample.images, pictures, strict=True):
            if isinstance(picture, PictureError):
                return refused(sample.source, f"picture {self._folder.display_name(path)} {picture}")
        for turn in sample.turns:
            for token in self._special:
                if token in turn.text:
                    return refused(
                        sample.source, f"{turn.text!r:.60} contains {token}, which means something else to the model: "
                                       "take it out"
                    )  # fmt: skip
        facts = next((picture for picture in pictures if isinstance(picture, PictureFacts)), None)
        return self._measure(sample, facts)

    def _measure(self, sample: Sample, picture: PictureFacts | None) -> Checked | Finding:
        try:
            encoded = encode(sample, self._processing, self._max_length)
        except PictureCutError as error:
            return self._too_short(sample, "its picture", error.needed)
        if encoded.num_supervised == 0:
            return self._too_short(sample, "every answer", encoded.first_answer_length)
        if encoded.truncated:
            lost = encoded.full_length - encoded.num_tokens
            self._findings.add(
                noted(Kind.OVERLONG, sample.source, f"{encoded.full_length} tokens, the last {lost} are cut off")
            )
        return Checked(
            sample=sample,
            picture=picture,
            num_tokens=encoded.full_length,
            num_supervised=encoded.num_supervised,
            num_characters=encoded.num_characters,
        )

    def _too_short(self, sample: Sample, what: str, needed: int) -> Finding:
        message = f"training.maxLength {self._max_length} cuts off {what}: it must be at least {needed}"
        return refused(sample.source, message, needed_length=needed)


def _windows(items: Iterable[Sample | Finding], size: int) -> Iterator[list[Sample | Finding]]:
    iterator = iter(items)
    while window := list(itertools.islice(iterator, size)):
        yield window
