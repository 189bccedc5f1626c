"""A few held-out questions, answered by the model under training at each validation: the same ones each time.

Greedy, with the template and the decoding of the evaluation, and bounded by tokens: a rank that stopped by a clock
would leave the others waiting. Questions are dealt out to the ranks and answered one at a time. Nothing of it is
learned from, or left in the model. Not under ZeRO-3, where each rank would have to run every module that any runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import GenerationConfig

from llava_api.spec import ValidationAnswers
from llava_api.text import cut
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.processor import Processor
from llava_trainer.data.questions import Question, ask_sample
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.gang.stopping import StopAgreement
from llava_trainer.gang.watchdog import Beat, Doing
from llava_trainer.gang.world import World
from llava_trainer.model.answering import count_prompt_tokens, encode_question, make_answerer
from llava_trainer.model.loading import PLAIN_ATTENTION
from llava_trainer.training.curve import MAX_ANSWER_CHARS
from llava_trainer.training.model_under_training import ModelUnderTraining

_LOOKED_AT = 1000
"""Samples that are looked at for questions; of a file of which none fits the length limit no more are tokenised."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutAnswers:
    """Lets the model under training answer. Every rank has one, and calls the same."""

    settings: ValidationAnswers
    questions: Sequence[Question]
    model: ModelUnderTraining
    world: World
    processor: Processor
    images: ImageFolder
    beat: Beat

    def answer(self, agreement: StopAgreement) -> tuple[str, ...] | None:
        """Answer all questions with the weights as they are. The model is in evaluation mode.

        Args:
            agreement: on stopping between questions.

        Returns:
            In the first rank, the answers in the questions' order; None in the others.

        Raises:
            AskedToStopError: before a question, in every rank.
            ImageError, OSError: a question's image cannot be loaded any more; prepare could.
        """
        mine = []
        size = self.world.world_size
        with _generating(self.model.llava) as llava:
            answerer = make_answerer(llava, self.processor, lambda: self.beat(Doing.COMPUTING))
            # As many rounds in every rank: the last one may have nothing left to answer in its last.
            for begin in range(0, len(self.questions), size):
                agreement.ask()
                self.beat(Doing.WAITING)
                agreement.check()
                number = begin + self.world.rank
                if number >= len(self.questions):
                    continue
                self.beat(Doing.COMPUTING)
                prompt = encode_question(self.questions[number], self.processor, self.images)
                answers = answerer.answer_greedily([prompt], self.settings.max_new_tokens, lambda _: None)
                mine += [cut(answer.text, max_chars=MAX_ANSWER_CHARS) for answer in answers]
        self.beat(Doing.WAITING)
        told = self.world.gather(mine)
        if told is None:
            return None
        return tuple(told[number % size][number // size] for number in range(len(self.questions)))


@contextmanager
def _generating(llava: Any) -> Iterator[Any]:
    """The model as generation needs it; afterwards it is as it was.

    With keys and values kept, which training switches off, by an attention that knows filling on the left, and without
    what the checkpoint says of generation: answers are those that the evaluation would have got.
    """
    text = llava.config.text_config
    use_cache, attention, generation = text.use_cache, text._attn_implementation, llava.generation_config
    text.use_cache, text._attn_implementation, llava.generation_config = True, PLAIN_ATTENTION, GenerationConfig()
    try:
        yield llava
    finally:
        text.use_cache, text._attn_implementation, llava.generation_config = use_cache, attention, generation


def draw_questions(
    samples: SampleFile, settings: ValidationAnswers, processor: Processor, *, seed: int, max_length: int
) -> tuple[Question, ...]:
    """The questions that are asked: the first of each of some samples, drawn by ``seed``.

    Those whose prompt is longer than ``max_length`` tokens are passed over: the memory plan counts with no more.

    Raises:
        ValueError: the file was damaged after it was written.
    """
    order = np.random.default_rng(seed).permutation(len(samples))[:_LOOKED_AT]
    drawn: list[Question] = []
    for index in order:
        question = next(ask_sample(samples[int(index)], "validation", int(index)), None)
        if question is None or count_prompt_tokens(question, processor) > max_length:
            continue
        drawn.append(question)
        if len(drawn) == settings.questions:
            break
    return tuple(drawn)
