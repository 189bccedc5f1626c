"""The questions of a dataset, one by one, with everything that was said before each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from llava_trainer.data.samples import Sample, Turn

QuestionSet = Literal["validation", "train", "retention", "prompt"]
"""validation: held out; train: seen in training; retention: the set that tells what was forgotten; prompt: of the
spec."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question to be answered, with everything that was said before it.

    Earlier turns hold the dataset's answers, not the model's own: each answer is judged for itself.
    """

    set: QuestionSet
    place: int
    """Of the sample in its set's file, from 0; of a prompt, in the spec."""
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
    references: tuple[str, ...] = ()
    """Right answers, the dataset's own first; empty for prompts."""
    group: str = ""
    """The sample's group key."""
    question_type: str = ""
    system: str = ""
    """Replaces LLaVA's system text; empty where that stays."""

    @property
    def id(self) -> str:
        """Unique among all questions of an evaluation."""
        return f"{self.set}/{self.place}/{self.number}"

    @property
    def text(self) -> str:
        """What is asked."""
        return self.turns[-1].text

    @property
    def expected(self) -> str | None:
        """The dataset's answer; None for prompts."""
        return self.references[0] if self.references else None


def ask_samples(samples: Iterable[Sample], of: QuestionSet) -> Iterator[Question]:
    """Every question of a set's file, in order."""
    for place, sample in enumerate(samples):
        yield from ask_sample(sample, of, place)


def ask_sample(sample: Sample, of: QuestionSet, place: int) -> Iterator[Question]:
    """Every question of one sample, in order.

    An image shown in a later turn is not there yet for the questions before it.
    """
    for number, (before, question, answer) in enumerate(sample.pairs(), start=1):
        turns = (*before, question)
        num_shown = sum(index < len(turns) for index in sample.image_turns)
        yield Question(
            set=of,
            place=place,
            sample=sample.id,
            number=number,
            images=sample.images[:num_shown],
            turns=turns,
            image_turns=sample.image_turns[:num_shown],
            references=_list_references(answer.text, sample.references if number == sample.num_pairs else ()),
            group=sample.group_key,
            question_type=sample.question_type,
            system=sample.system,
        )


def _list_references(own: str, further: tuple[str, ...]) -> tuple[str, ...]:
    """The dataset's answer, then the others.

    Often it is one of them: then it changes its place and is not named twice, since how many people gave an answer is
    what VQA's metric counts.
    """
    rest = list(further)
    if own in rest:
        rest.remove(own)
    return (own, *rest)
