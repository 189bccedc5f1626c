"""What evaluation is about, as values: one row an answer, from which every score, interval and page is calculated.

Rows are all that crosses from those who let models answer to those who score; nothing of models is known here.
"""

from typing import Literal

from llava_api.base import Lenient
from llava_trainer.data.questions import QuestionSet

__all__ = ["Model", "QuestionSet", "Row", "Variant"]

Model = Literal["bare", "base", "tuned"]
"""base: what the run began with, with the adapter that it was given, if any; bare: without that adapter."""
Variant = Literal["asked", "instructed", "alone"]
"""asked: as the dataset asks; instructed: with LLaVA's instruction for short answers; alone: without earlier turns."""


class Row(Lenient):
    """One answer of one model to one question that was asked in one way.

    A question is the same for every model and variant, which is what ``question_id`` says.
    """

    question_id: str
    """Unique: ``SET/PLACE/NUMBER``, the sample's place in its set's file and which question of it, from 1."""
    set: QuestionSet
    sample: str
    """The sample's id as the data has it, or the prompt's number; not unique."""
    number: int
    """Which question of the sample, from 1."""
    group: str
    """The sample's group key: rows of one group are not independent."""
    question_type: str = ""
    images: tuple[str, ...] = ()
    question: str
    """The text that was asked, without earlier turns."""
    references: tuple[str, ...] = ()
    """Right answers; the dataset's own first. Empty for prompts."""
    model: Model
    variant: Variant = "asked"
    answer: str
    is_cut: bool = False
    """Whether it was cut off at ``maxNewTokens`` instead of ended by the model."""
    is_close: bool = False
    """Whether at some token the two largest logits were within 1e-4: there greedy answers may differ with the batch."""
