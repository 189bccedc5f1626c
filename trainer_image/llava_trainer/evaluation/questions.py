"""The questions that both models are asked: those of the dataset, one by one, and those of the spec."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.spec import Prompt
from llava_trainer.data.image_folder import training_images
from llava_trainer.data.images import ImageError, open_image
from llava_trainer.data.samples import Sample, Turn
from llava_trainer.errors import StageError

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


def ask_prompts(config: RunConfig) -> list[Question]:
    """The prompts of the spec.

    Raises:
        StageError: a prompt's image cannot be opened.
    """
    return [_ask_prompt(index, prompt, config) for index, prompt in enumerate(config.evaluation.prompts)]


def _ask_prompt(index: int, prompt: Prompt, config: RunConfig) -> Question:
    if prompt.image is not None:
        try:
            open_image(training_images(config).resolve(prompt.image))
        except ImageError as error:
            raise StageError(
                Reason.INVALID_DATA,
                f"spec.evaluation.prompts[{index}].image is {prompt.image!r} (below spec.dataset.images, "
                f"{config.dataset.images!r}), which {error}",
            ) from error
    return Question(
        split="prompt",
        sample=str(index + 1),
        number=1,
        images=() if prompt.image is None else (prompt.image,),
        turns=(Turn(role="user", text=prompt.text.strip()),),
        image_turns=() if prompt.image is None else (0,),
        expected=None,
    )
