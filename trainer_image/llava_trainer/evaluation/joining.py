"""All shards' rows put together, exactly one for each question, model and way of asking; what is counted of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_api.base import Lenient
from llava_api.failures import Reason
from llava_trainer.data.questions import Question
from llava_trainer.errors import StageError
from llava_trainer.evaluation.asking import Asking, Key, is_answer_to, key_of, list_askings
from llava_trainer.evaluation.rows import Model, QuestionSet, Row, Variant
from llava_trainer.evaluation.shard_file import Repeats, ShardFileError, WholeShard, read_whole_shard


class AnswerCounts(Lenient):
    """Answers of one model to one set, asked in one way."""

    set: QuestionSet
    model: Model
    variant: Variant
    answers: int
    cut: int
    """Of them cut off at ``maxNewTokens``."""
    close: int
    """Of them with a token where the two largest logits were within 1e-4: they may depend on the batch."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What all shards hold."""

    rows: tuple[Row, ...]
    """In the order of the questions, each with its models and ways of asking."""
    seconds: dict[Model, float]
    """Of all pods, that each model has answered for."""
    repeats: tuple[Repeats, ...]


def join_shards(
    volume_root: Path, files: Iterable[Path], questions: Sequence[Question], models: Sequence[Model]
) -> Joined:
    """Read every shard and check that the rows are those that there have to be.

    Args:
        volume_root: of the run.
        files: of the shards.
        questions: of all shards.
        models: of the run.

    Raises:
        StageError: InternalError; a file is damaged, or a row is missing, there twice, or of no question.
        OSError: a file cannot be read.
    """
    try:
        shards = [read_whole_shard(volume_root, file) for file in files]
    except ShardFileError as error:
        raise StageError(
            Reason.INTERNAL_ERROR, f"a shard of the evaluation was damaged after it was written: {error}"
        ) from error
    return Joined(
        rows=_check_rows(shards, questions, models),
        seconds={model: round(sum(one.trailer.seconds.get(model, 0) for one in shards), 3) for model in models},
        repeats=_sum_repeats(shards, models),
    )


def _check_rows(
    shards: Sequence[WholeShard], questions: Sequence[Question], models: Sequence[Model]
) -> tuple[Row, ...]:
    askings: dict[tuple[str, Variant], Asking] = {
        (question.id, asking.variant): asking for question in questions for asking in list_askings(question)
    }
    found: dict[Key, Row] = {}
    for row in (row for shard in shards for row in shard.rows):
        key, asking = key_of(row), askings.get((row.question_id, row.variant))
        if key in found:
            raise _wrong(key, "is there twice")
        if asking is None or row.model not in asking.models(models) or not is_answer_to(row, asking):
            raise _wrong(key, "is of a question that is not asked")
        found[key] = row
    expected: list[Key] = [
        (asking.question.id, model, asking.variant) for asking in askings.values() for model in asking.models(models)
    ]
    if (missing := next((key for key in expected if key not in found), None)) is not None:
        raise _wrong(missing, "is missing")
    return tuple(found[key] for key in expected)


def _wrong(key: Key, what: str) -> StageError:
    question, model, variant = key
    return StageError(
        Reason.INTERNAL_ERROR, f"the answer of {model} to question {question} ({variant}) {what} in the shards' files"
    )


def _sum_repeats(shards: Sequence[WholeShard], models: Sequence[Model]) -> tuple[Repeats, ...]:
    told = [one for shard in shards for one in shard.trailer.repeats]
    return tuple(
        Repeats(model=model, asked=sum(one.asked for one in of), changed=sum(one.changed for one in of))
        for model in models
        if (of := [one for one in told if one.model == model])
    )


def count_answers(rows: Iterable[Row]) -> tuple[AnswerCounts, ...]:
    """How many answers there are of each kind, in the order in which kinds come first."""
    answers, cut, close = Counter[tuple[QuestionSet, Model, Variant]](), Counter[object](), Counter[object]()
    for row in rows:
        kind = (row.set, row.model, row.variant)
        answers[kind] += 1
        cut[kind] += row.is_cut
        close[kind] += row.is_close
    return tuple(
        AnswerCounts(set=kind[0], model=kind[1], variant=kind[2], answers=num, cut=cut[kind], close=close[kind])
        for kind, num in answers.items()
    )
