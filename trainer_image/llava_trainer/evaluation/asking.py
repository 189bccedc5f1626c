"""Who is asked what, and how: the models of a run, and the ways in which one question is put to them. Pure.

A base that was never told how long its answers should be is not worse for answering in a sentence. So where the data
asks for short answers without saying so, the base is also asked with LLaVA's own instruction for that; the tuned model
has learned it from the data, and is asked as it was trained. Of the retention set it has learned nothing, so there both
models are asked in both ways: a model that has not changed has to come out as one that has forgotten nothing.

Where a question has earlier turns, these show the form of the answers; who serves the model has none of them, so both
models are asked without them as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava_trainer.data.questions import Question
from llava_trainer.evaluation.rows import Model, Row, Variant

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Liu et al. 2024, Improved Baselines with Visual Instruction Tuning, section 3.3; it follows the question on a line of
its own, as in LLaVA's training data."""
_INSTRUCTIONS = (SHORT_ANSWER, "Answer with the option's letter from the given choices directly.")
"""Of the same paper: either says already what an answer should look like."""
Key = tuple[str, Model, Variant]
"""Of a row: question, model, and how it was asked."""
MOST_WORDS = 5
"""References that have more are no short answers."""
_BOTH: tuple[Model, ...] = ("base", "tuned")
_MODELS: dict[Variant, tuple[Model, ...]] = {
    "asked": ("bare", "base", "tuned"),
    "instructed": ("base",),
    "alone": _BOTH,
}


@dataclass(frozen=True, kw_only=True)
class Asking:
    """One question, put in one way."""

    question: Question
    """As the dataset asks it."""
    variant: Variant
    put: Question
    """What the models are fed."""

    @property
    def is_prompt(self) -> bool:
        """Whether it is a prompt of the spec, which is answered as that says; all else is answered greedily."""
        return self.question.set == "prompt"

    def models(self, available: Sequence[Model]) -> tuple[Model, ...]:
        """Those of the run's models that are asked so."""
        asked = _MODELS[self.variant]
        if self.variant == "instructed" and self.question.set == "retention":
            asked = _BOTH
        return tuple(model for model in asked if model in available)


def list_askings(question: Question) -> tuple[Asking, ...]:
    """All the ways in which a question is put."""
    put: dict[Variant, Question] = {"asked": question}
    if _lacks_instruction(question):
        put["instructed"] = _instruct(question)
    if len(question.turns) > 1:
        put["alone"] = _leave_alone(question)
    return tuple(Asking(question=question, variant=variant, put=changed) for variant, changed in put.items())


def make_row(asking: Asking, model: Model, *, answer: str, is_cut: bool, is_close: bool) -> Row:
    """What a model has answered, with all that is known of the question."""
    question = asking.question
    return Row(
        question_id=question.id,
        set=question.set,
        sample=question.sample,
        number=question.number,
        # Of a volume whose samples know no groups each sample is one.
        group=question.group or f"{question.set}/{question.place}",
        question_type=question.question_type,
        images=question.images,
        question=question.text,
        references=question.references,
        model=model,
        variant=asking.variant,
        answer=answer,
        is_cut=is_cut,
        is_close=is_close,
    )


def is_answer_to(row: Row, asking: Asking) -> bool:
    """Whether a row that was read is what ``make_row`` makes, whatever the answer is."""
    told = make_row(asking, row.model, answer=row.answer, is_cut=row.is_cut, is_close=row.is_close)
    return told == row


def _lacks_instruction(question: Question) -> bool:
    """Whether short answers are expected that nothing so far has asked for."""
    if not question.references or not all(0 < len(text.split()) <= MOST_WORDS for text in question.references):
        return False
    said = [_plain(question.system), *(_plain(turn.text) for turn in question.turns if turn.role == "user")]
    return not any(_plain(instruction) in text for instruction in _INSTRUCTIONS for text in said)


def _plain(text: str) -> str:
    """Without what people write one way or the other: capitals, white space, a full stop, the kind of apostrophe."""
    return " ".join(text.casefold().replace("’", "'").split()).rstrip(".")


def _instruct(question: Question) -> Question:
    last = question.turns[-1]
    return replace(question, turns=(*question.turns[:-1], replace(last, text=f"{last.text}\n{SHORT_ANSWER}")))


def _leave_alone(question: Question) -> Question:
    """The question with all images that were shown until then, and no earlier turn."""
    return replace(question, turns=question.turns[-1:], image_turns=(0,) * len(question.images))


def key_of(row: Row) -> Key:
    """By which rows are told apart."""
    return row.question_id, row.model, row.variant
