"""Token ids and labels of a sample.

The conversation is tokenised once, as a whole, and the labels follow from character offsets. LLaVA tokenises each
round again and counts; where the counts disagree it masks the whole sample without a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample, Turn
from llava_trainer.data.template import Template, render, render_prompt

IGNORED = -100
"""Label of a position that is not learned (PyTorch's ``ignore_index``)."""


class ImageCutError(ValueError):
    """The length limit falls before an image's end, and an image cannot be shown in part.

    Attributes:
        needed: shortest limit that keeps every image and the first answer, in tokens.
    """

    def __init__(self, needed: int) -> None:
        super().__init__(f"a picture is cut off; at least {needed} tokens are needed")
        self.needed = needed


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One sample as the model is fed.

    Attributes:
        input_ids: token ids, each image's ``<image>`` repeated once for each of its tokens.
        labels: the ids that are learned, IGNORED elsewhere; the model shifts them. Same length.
        images: image paths, as in the sample.
        full_length: tokens before cutting off.
        first_answer_length: tokens up to the end of the first answer, before cutting off.
        num_characters: characters of the rendered conversation that are left after cutting off.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    images: tuple[str, ...]
    full_length: int
    first_answer_length: int
    num_characters: int

    @property
    def num_tokens(self) -> int:
        """Tokens, image tokens included."""
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Tokens that are learned."""
        return sum(label != IGNORED for label in self.labels)

    @property
    def truncated(self) -> bool:
        """Whether the end was cut off."""
        return self.full_length > len(self.input_ids)


def encode(sample: Sample, processor: Processor, max_length: int, template: Template = "v1") -> Encoded:
    """Tokenise a sample; what is beyond ``max_length`` tokens is cut off.

    Raises:
        ImageCutError: the limit falls before the last image's end.
        TemplateError: the layout has no place for the sample.
    """
    conversation = render(sample, template, processor.gap)
    ids, offsets = _tokenize(conversation.text, processor)
    labels = _mask(ids, offsets, conversation.supervised)
    ids, labels = _expand_images(ids, labels, processor)
    first_answer_length = _end_of_first_answer(ids, labels, processor.eos_token_id)
    kept_ids, kept_labels = ids[:max_length], labels[:max_length]
    if kept_ids.count(processor.image_token_id) < len(sample.images) * processor.tokens_per_image:
        end_of_image = len(ids) - ids[::-1].index(processor.image_token_id)
        raise ImageCutError(max(first_answer_length, end_of_image))
    num_kept = len(kept_ids) - len(sample.images) * (processor.tokens_per_image - 1)
    return Encoded(
        input_ids=tuple(kept_ids),
        labels=tuple(kept_labels),
        images=sample.images,
        full_length=len(ids),
        first_answer_length=first_answer_length,
        num_characters=offsets[num_kept - 1][1],
    )


def encode_prompt(
    turns: Sequence[Turn], image_turns: Sequence[int], processor: Processor, *, system: str = ""
) -> list[int]:
    """Token ids to generate an answer from: the same ids that training has before the answer.

    Args:
        turns: the conversation up to and including the question.
        image_turns: for each image, the index of the turn that shows it.
        processor: the checkpoint's.
        system: replaces LLaVA's system text; empty where that stays.
    """
    ids, _ = _tokenize(render_prompt(turns, image_turns, processor.gap, system=system), processor)
    expanded, _ = _expand_images(ids, [IGNORED] * len(ids), processor)
    return expanded


def _tokenize(text: str, processor: Processor) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    bos = processor.bos_token_id
    return (ids, offsets) if bos is None else ([bos, *ids], [(0, 0), *offsets])


def _mask(ids: Sequence[int], offsets: Sequence[tuple[int, int]], supervised: Sequence[tuple[int, int]]) -> list[int]:
    """Labels: a token is learned if any character of it lies in a supervised range."""
    labels = [IGNORED] * len(ids)
    ranges = iter(supervised)
    begin, end = next(ranges, (0, 0))
    for position, (first, last) in enumerate(offsets):
        while first >= end and (following := next(ranges, None)) is not None:
            begin, end = following
        if last > begin and first < end:
            labels[position] = ids[position]
    return labels


def _expand_images(ids: Sequence[int], labels: Sequence[int], processor: Processor) -> tuple[list[int], list[int]]:
    expanded_ids: list[int] = []
    expanded_labels: list[int] = []
    for token, label in zip(ids, labels, strict=True):
        count = processor.tokens_per_image if token == processor.image_token_id else 1
        expanded_ids.extend([token] * count)
        expanded_labels.extend([label] * count)
    return expanded_ids, expanded_labels


def _end_of_first_answer(ids: Sequence[int], labels: Sequence[int], eos: int) -> int:
    """Length up to the first learned ``</s>``."""
    for position, label in enumerate(labels):
        if label == eos:
            return position + 1
    return len(ids)
