"""Letting a model answer: greedily and in batches for scores, sampled one by one for prompts.

Knows models, questions and how these are encoded; nothing of files, nor of who asks.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llava_api.spec import Generation
from llava_trainer.data.encode import encode_prompt
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import Processor
from llava_trainer.data.questions import Question

BATCH_TOKENS = 8_192
"""Tokens of prompts and answers that are held at a time: about 4 GB of keys and values for a 7B model in bfloat16."""
BATCH_ROWS = 128
KEPT_BYTES = 256 << 20
"""Of images' values that are kept: about 190 images of 336 px."""
CLOSE = 1e-4
"""Two logits that are no further apart may change places with the batch's composition: sums of fp32 products in another
order differ by some 1e-5."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Ids of the tokens that begin, end and fill up a sequence."""

    bos: int | None
    eos: int
    pad: int


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A prompt as the model is fed."""

    ids: Sequence[int]
    """Token ids, image tokens expanded."""
    load_pixels: Callable[[], torch.Tensor] | None
    """Makes the images' values, (images, 3, height, width), when they are needed; None without an image."""
    images: tuple[Path, ...] = ()
    """Of which files: prompts of one batch about the same ones share them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Prompts of one batch, filled up on the left, in the machine's memory."""

    ids: torch.Tensor
    """int64 [rows, longest]."""
    mask: torch.Tensor
    """int64 [rows, longest]: 1 where a row has a token, 0 where it is filled up."""
    pixels: torch.Tensor | None
    """float32 [images of all rows, 3, height, width]; None without any."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a model has answered."""

    text: str
    is_cut: bool
    """Whether it was cut off at the most tokens instead of ended by the model."""
    is_close: bool = False
    """Whether, decoding greedily, the two largest logits were within ``CLOSE`` at one of its tokens."""


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model ready to answer."""

    model: PreTrainedModel
    tokens: Tokens
    decode: Callable[[Sequence[int]], str]
    """Text of generated ids, special tokens left out."""
    on_token: Callable[[], None] = lambda: None
    """Called after each token of a batch."""

    def answer_greedily(
        self, prompts: Sequence[EncodedPrompt], max_new_tokens: int, on_answered: Callable[[int], None]
    ) -> list[Generated]:
        """Answer every prompt with the likeliest tokens; in fp32 it makes no difference how they are batched.

        Args:
            prompts: what to answer.
            max_new_tokens: where an answer is cut off.
            on_answered: told after each batch how many more are answered.
        """
        answers: dict[int, Generated] = {}
        for batch in plan_batches([len(prompt.ids) for prompt in prompts], max_new_tokens):
            answers |= zip(batch, self.answer_batch([prompts[index] for index in batch], max_new_tokens), strict=True)
            on_answered(len(batch))
        return [answers[index] for index in range(len(prompts))]

    def answer_batch(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> list[Generated]:
        """Answer these prompts at a time, with the likeliest tokens."""
        return self.answer_prepared(self.prepare(prompts), max_new_tokens)

    def prepare(self, prompts: Sequence[EncodedPrompt]) -> Prepared:
        """Read images and put prompts side by side; another thread may do so while the model answers others."""
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self.tokens.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, longest - len(prompt.ids) :] = 1
        shown = [(prompt.images or (number,), prompt.load_pixels) for number, prompt in enumerate(prompts)]
        loaded = {images: load() for images, load in dict(shown).items() if load is not None}
        pixels = [loaded[images] for images, _ in shown if images in loaded]
        return Prepared(ids=ids, mask=mask, pixels=torch.cat(pixels) if pixels else None)

    def answer_prepared(self, batch: Prepared, max_new_tokens: int) -> list[Generated]:
        """Answer prompts that are prepared, with the likeliest tokens."""
        margins = _Margins()
        rows = self._generate(batch, self._config(max_new_tokens, do_sample=False), margins)
        smallest = margins.smallest([len(row) for row in rows])
        return [
            self._finish(row, max_new_tokens, is_close=margin <= CLOSE)
            for row, margin in zip(rows, smallest, strict=True)
        ]

    def answer_as_told(
        self, prompt: EncodedPrompt, generation: Generation, streamer: BaseStreamer | None = None
    ) -> Generated:
        """Answer one prompt as the spec says; seeded anew, so that a repeat gives the same answer.

        Args:
            prompt: what to answer.
            generation: how.
            streamer: given each token when it is decided upon, which beams never are before the end.
        """
        sampling = {}
        if generation.temperature > 0:
            # No limit to the k likeliest tokens unless it is asked for: transformers' own default is 50.
            sampling = {"temperature": generation.temperature, "top_p": generation.top_p or 1.0, "top_k": 0}
        config = self._config(
            generation.max_new_tokens, do_sample=bool(sampling), num_beams=generation.num_beams, **sampling
        )
        device = _device(self.model)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(generation.seed)
            row = self._generate(self.prepare([prompt]), config, streamer=streamer)[0]
            return self._finish(row, generation.max_new_tokens)

    def _config(self, max_new_tokens: int, **how: float | bool) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            bos_token_id=self.tokens.bos,
            eos_token_id=self.tokens.eos,
            pad_token_id=self.tokens.pad,
            **how,
        )

    # Not inference_mode: what a module under training remembers of it could not enter a graph later.
    @torch.no_grad()
    def _generate(
        self, batch: Prepared, config: GenerationConfig, *watching: "_Margins", streamer: BaseStreamer | None = None
    ) -> list[list[int]]:
        """Ids of each answer, with the token that has ended it if one has."""
        device = _device(self.model)
        inputs = {"input_ids": batch.ids.to(device), "attention_mask": batch.mask.to(device)}
        if batch.pixels is not None:
            inputs["pixel_values"] = batch.pixels.to(device, self.model.dtype)
        generated = self.model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList(watching),
            stopping_criteria=StoppingCriteriaList([_Listener(self.on_token)]),
            streamer=streamer,
        )
        rows = generated[:, inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(self.tokens.eos) + 1] if self.tokens.eos in row else row for row in rows]

    def _finish(self, row: list[int], max_new_tokens: int, *, is_close: bool = False) -> Generated:
        has_ended = row[-1:] == [self.tokens.eos]
        text = self.decode(row[:-1] if has_ended else row).strip()
        return Generated(text=text, is_cut=not has_ended and len(row) >= max_new_tokens, is_close=is_close)


class _Listener:
    """A StoppingCriteria that stops nothing."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        self._on_token()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Margins:
    """A LogitsProcessor that changes nothing, and notes how far the two largest logits are apart at each token."""

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        largest = scores.topk(2, dim=-1).values
        self._steps.append(largest[:, 0] - largest[:, 1])
        return scores

    def smallest(self, lengths: Sequence[int]) -> list[float]:
        """The smallest distance in each row, over its own tokens: what comes behind its end does not count."""
        steps = torch.stack(self._steps, dim=1).tolist()
        return [min(row[:length]) for row, length in zip(steps, lengths, strict=True)]


def make_answerer(
    model: PreTrainedModel, processor: Processor, on_token: Callable[[], None] = lambda: None
) -> Answerer:
    """What lets ``model`` answer, with the processor's tokens."""
    return Answerer(
        model=model,
        tokens=Tokens(bos=processor.bos_token_id, eos=processor.eos_token_id, pad=processor.pad_token_id),
        decode=lambda ids: processor.tokenizer.decode(ids, skip_special_tokens=True),
        on_token=on_token,
    )


def count_prompt_tokens(question: Question, processor: Processor) -> int:
    """Tokens of a question as the model is fed, image tokens expanded."""
    return len(_encode(question, processor))


def _encode(question: Question, processor: Processor) -> Sequence[int]:
    return encode_prompt(question.turns, question.image_turns, processor, system=question.system)


def encode_question(
    question: Question, processor: Processor, folder: ImageFolder, kept: "KeptPixels | None" = None
) -> EncodedPrompt:
    """A question as the model is fed; its images are only read when its turn comes, and not again while ``kept``."""
    ids = _encode(question, processor)
    if not question.images:
        return EncodedPrompt(ids=ids, load_pixels=None)
    images = tuple(folder.find(image) for image in question.images)

    def read() -> torch.Tensor:
        return torch.stack([torch.from_numpy(pixel_values(open_image(image), processor)) for image in images])

    load = read if kept is None else lambda: kept.get(images, read)
    return EncodedPrompt(ids=ids, images=images, load_pixels=load)


class KeptPixels:
    """The values of images that were used last, for questions that are asked in several ways, and of several models.

    For one thread at a time.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[Path, ...], torch.Tensor] = OrderedDict()

    def get(self, images: tuple[Path, ...], read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Values of these images, read where they are not kept."""
        found = self._kept.pop(images, None)
        if found is None:
            found = read()
            self._bytes += found.nbytes
        self._kept[images] = found
        while self._bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return found


def plan_batches(lengths: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
    """Indexes of the prompts of each batch.

    Prompts of like length go together, the longest first: little is padding, and memory that does not suffice shows
    at once. A batch is at most BATCH_ROWS rows and, unless it is one row, BATCH_TOKENS tokens with its answers.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        rows = max(1, min(BATCH_ROWS, BATCH_TOKENS // (lengths[order[start]] + max_new_tokens)))
        yield order[start : start + rows]
        start += rows


def _device(model: PreTrainedModel) -> torch.device:
    device: torch.device = model.device
    return device
