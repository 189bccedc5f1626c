"""The questions of a dataset, one by one, with everything that was said before each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from llava_trainer.data.samples import Sample, Turn

Split = Literal["validation", "train", "prompt"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question to be answered, with everything that was said before it.

    Earlier turns hold the dataset's answers, not the model's own: each answer is judged for itself.
    """

    split: Split
    sample: str
    """The sample's id, or the prompt's number."""
    number: int
    """Which question of the conversation, from 1."""
    images: tuple[str, ...]
    """Images shown so far, relative to the dataset's image folder."""
    turns: tuple[Turn, ...]
    """The conversation up to and including this question."""
    image_turns: tuple[int, ...]
    """For each image, the index of the turn that shows it."""
    expected: str | None
    """The dataset's answer; None for prompts."""
    system: str = ""
    """Replaces LLaVA's system text; empty where that stays."""

    @property
    def text(self) -> str:
        """What is asked."""
        return self.turns[-1].text


def ask_samples(samples: Iterable[Sample], split: Split) -> Iterator[Question]:
    """Every question of ``samples``, in order.

    An image shown in a later turn is not there yet for the questions before it.
    """
    for sample in samples:
        for number, (before, question, answer) in enumerate(sample.pairs(), start=1):
            turns = (*before, question)
            num_shown = sum(index < len(turns) for index in sample.image_turns)
            yield Question(
                split=split,
                sample=sample.id,
                number=number,
                images=sample.images[:num_shown],
                turns=turns,
                image_turns=sample.image_turns[:num_shown],
                expected=answer.text,
                system=sample.system,
            )
