"""Every sample against everything that would fail on a GPU: its images, its length, what it teaches."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from llava_trainer.data.encode import ImageCutError, encode
from llava_trainer.data.findings import Finding, Findings, Kind, noted, refused
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.images import ImageError, ImageFacts, check_image
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample
from llava_trainer.data.template import Template, TemplateError

_AHEAD = 128
"""Samples that are read before the one that is checked, so that decoders always have images to work on."""
_AHEAD_CHARACTERS = 2 * 2**20
"""Text in them at most."""
MAX_SAMPLE_CHARACTERS = 2**20
"""Text of a sample: no training.maxLength reaches so far, and tokenising it takes 200 bytes a token."""
MAX_SAMPLE_IMAGES = 1024
"""Images of a sample, for the same reason: each takes some hundred tokens."""
_MAX_DECODERS = 4


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a sample may have at most.

    Attributes:
        max_length: training.maxLength, in tokens.
        max_pixels: dataset.limits.imagePixels.
    """

    max_length: int
    max_pixels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A sample that can be trained on.

    Attributes:
        images: facts of its images, in the order in which it shows them.
        num_tokens: its whole length in tokens, before cutting off.
        num_supervised: tokens that are learned, after cutting off.
        num_characters: characters of the rendered conversation that are left after cutting off.
    """

    sample: Sample
    images: tuple[ImageFacts, ...]
    num_tokens: int
    num_supervised: int
    num_characters: int


class Checker:
    """Checks samples; images are decoded once, however many samples are about them.

    Decoding lets go of the interpreter, so that threads are enough: on two cores they decode while this one tokenises.
    What is found does not depend on their number.
    """

    def __init__(
        self,
        folder: ImageFolder,
        processor: Processor,
        limits: Limits,
        findings: Findings,
        *,
        template: Template = "v1",
        num_decoders: int | None = None,
    ) -> None:
        self._folder = folder
        self._processing = processor
        self._limits = limits
        self._findings = findings
        self._template = template
        self._num_decoders = num_decoders or min(_MAX_DECODERS, len(os.sched_getaffinity(0)))
        self._special = sorted(processor.tokenizer.all_special_tokens)
        self._large = threading.Lock()
        self._coming: dict[str, Future[ImageFacts | ImageError]] = {}
        self.images: dict[str, ImageFacts | ImageError] = {}
        """What was found about each image's path."""

    def check_all(
        self, items: Iterable[Sample | Finding], on_checked: Callable[[], None] = lambda: None
    ) -> Iterator[Checked]:
        """Check samples in order; findings among them are taken in where they stand.

        Args:
            items: what a reader yields.
            on_checked: called after each sample.
        """
        with ThreadPoolExecutor(self._num_decoders, thread_name_prefix="decode") as pool:
            for item in _read_ahead(items, lambda item: self._begin_decoding(item, pool)):
                if isinstance(item, Finding):
                    self._findings.add(item)
                    continue
                checked = self._check(item)
                if isinstance(checked, Finding):
                    self._findings.add(checked)
                else:
                    yield checked
                on_checked()

    def find_image_problem(self, relative: str) -> ImageError | None:
        """What is wrong with one image, if anything."""
        found = self._facts_of(relative)
        return found if isinstance(found, ImageError) else None

    def _begin_decoding(self, item: Sample | Finding, pool: ThreadPoolExecutor) -> None:
        if isinstance(item, Finding) or len(item.images) > MAX_SAMPLE_IMAGES:
            return
        for path in item.images:
            if path not in self.images and path not in self._coming:
                self._coming[path] = pool.submit(self._look_at, path)

    def _facts_of(self, path: str) -> ImageFacts | ImageError:
        found = self.images.get(path)
        if found is None:
            coming = self._coming.pop(path, None)
            found = self.images[path] = coming.result() if coming else self._look_at(path)
        return found

    def _look_at(self, relative: str) -> ImageFacts | ImageError:
        try:
            return check_image(self._folder.resolve(relative), self._limits.max_pixels, self._large)
        except ImageError as error:
            # A new one: the traceback of this one keeps the decoder's buffers, for as long as the error is remembered.
            return ImageError(str(error))

    def _check(self, sample: Sample) -> Checked | Finding:
        if len(sample.images) > MAX_SAMPLE_IMAGES:
            return refused(sample.source, f"shows more than {MAX_SAMPLE_IMAGES:,} pictures: divide it")
        images = []
        for path in sample.images:
            found = self._facts_of(path)
            if isinstance(found, ImageError):
                return refused(sample.source, f"picture {self._folder.display_name(path)} {found}")
            images.append(found)
        if _size_of(sample) > MAX_SAMPLE_CHARACTERS:
            return refused(sample.source, f"holds more than {MAX_SAMPLE_CHARACTERS:,} characters: divide it")
        for text in (sample.system, *(turn.text for turn in sample.turns), *sample.references):
            for token in self._special:
                if token in text:
                    message = f"{text!r:.60} contains {token}, which means something else to the model: take it out"
                    return noted(Kind.SPECIAL_TOKEN, sample.source, message)
        return self._measure(sample, tuple(images))

    def _measure(self, sample: Sample, images: tuple[ImageFacts, ...]) -> Checked | Finding:
        max_length = self._limits.max_length
        try:
            encoded = encode(sample, self._processing, max_length, self._template)
        except TemplateError as error:
            return refused(sample.source, str(error))
        except ImageCutError as error:
            which = "its picture" if len(sample.images) == 1 else "a picture"
            return self._too_short(sample, which, error.needed)
        if not any(turn.text for turn in sample.turns if turn.role == "assistant"):
            return noted(Kind.NOTHING_TO_LEARN, sample.source, "every answer is blank")
        if encoded.num_supervised == 0:
            return self._too_short(sample, "every answer", encoded.first_answer_length)
        if encoded.truncated:
            lost = encoded.full_length - encoded.num_tokens
            self._findings.add(
                noted(Kind.OVERLONG, sample.source, f"{encoded.full_length} tokens, the last {lost} are cut off")
            )
        return Checked(
            sample=sample,
            images=images,
            num_tokens=encoded.full_length,
            num_supervised=encoded.num_supervised,
            num_characters=encoded.num_characters,
        )

    def _too_short(self, sample: Sample, what: str, needed: int) -> Finding:
        message = f"training.maxLength {self._limits.max_length} cuts off {what}: it must be at least {needed}"
        return noted(Kind.NOTHING_TO_LEARN, sample.source, message, needed_length=needed)


def _read_ahead(
    items: Iterable[Sample | Finding], on_read: Callable[[Sample | Finding], None]
) -> Iterator[Sample | Finding]:
    """The items in their order; each is told to ``on_read`` some time before it comes."""
    waiting: deque[tuple[Sample | Finding, int]] = deque()
    num_characters = 0
    for item in items:
        on_read(item)
        waiting.append((item, _size_of(item)))
        num_characters += waiting[-1][1]
        while waiting and (len(waiting) > _AHEAD or num_characters > _AHEAD_CHARACTERS):
            first, size = waiting.popleft()
            num_characters -= size
            yield first
    yield from (item for item, _ in waiting)


_BYTES_PER_NAME = 100
"""What a text and two numbers take besides their characters."""


def _size_of(item: Sample | Finding) -> int:
    """About how many bytes it takes."""
    if isinstance(item, Finding):
        return len(item.message)
    names = (item.id, item.group, item.question_type)
    texts = (item.system, *(turn.text for turn in item.turns), *item.references, *names)
    # A name of an image is shared by none, and each has its place in the conversation beside it.
    return sum(len(text) for text in texts) + sum(len(name) + _BYTES_PER_NAME for name in item.images)
