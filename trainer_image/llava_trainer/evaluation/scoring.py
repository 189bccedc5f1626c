"""From rows to scores: base against tuned, in the better of the ways in which the base was asked. Pure.

``evaluation.metrics`` says what an answer is worth, ``evaluation.statistics`` what chance could make of it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llava_trainer.evaluation.draws import Draws, Numbers
from llava_trainer.evaluation.metrics import Metric
from llava_trainer.evaluation.pairs import QuestionAnswers, pair_rows
from llava_trainer.evaluation.rows import Model, Row, Variant
from llava_trainer.evaluation.scores import AloneScore, Difference, ModelScore, SplitScore, TypeScore
from llava_trainer.evaluation.statistics import Tallies, estimate_gain, estimate_score, ratio, sign_flip_p_value

SCORED_SETS = ("validation", "train", "retention")
ASKED: Variant = "asked"
INSTRUCTED: Variant = "instructed"
_COMPARED: tuple[Model, Model] = ("base", "tuned")
MAX_TYPES = 20
"""Question types of a set that are scored by themselves: those with most questions. More would be no overview."""


def score_rows(rows: Iterable[Row], metrics: Sequence[Metric], *, num_shared: int = 0) -> tuple[SplitScore, ...]:
    """Scores of each set that has questions, held-out ones first, by each metric that judges one of them.

    Args:
        rows: of all models; those of prompts are passed over.
        metrics: in the order in which scores are to stand.
        num_shared: held-out questions whose group training has samples of, too.

    Raises:
        ValueError: a question has two answers of one kind, or none of base or tuned.
    """
    questions: dict[str, list[QuestionAnswers]] = defaultdict(list)
    for question in pair_rows(row for row in rows if row.set in SCORED_SETS):
        questions[question.set].append(question)
    draws = Draws()
    asked = [
        _ask_set(
            _Questions(draws, metric, judged),
            num_all=len(questions[name]),
            num_shared=num_shared if name == "validation" else 0,
        )
        for name in SCORED_SETS
        for metric in metrics
        if (judged := [question for question in questions[name] if metric.judges(question.references)])
    ]
    draws.draw()
    return tuple(score() for score in asked)


def judge_row(metric: Metric, row: Row) -> float | None:
    """What one answer is worth by a metric that is a mean, from 0 to 1; None where it has no say about the question."""
    return metric.tally(row.answer, row.references)[0] if metric.judges(row.references) else None


@dataclass(frozen=True)
class _Questions:
    """Questions that a metric judges, one at least.

    Scores and differences are functions: they can be told once everything is drawn.
    """

    draws: Draws
    metric: Metric
    questions: Sequence[QuestionAnswers]

    @cached_property
    def groups(self) -> npt.NDArray[np.intp]:
        """Number of each question's group."""
        return np.unique([question.group for question in self.questions], return_inverse=True)[1]

    @property
    def num_groups(self) -> int:
        return int(self.groups.max()) + 1

    def tallies(self, model: Model, variant: Variant = "asked") -> Tallies:
        """Of a model's answers; as the dataset asks where it was not asked in the other way."""
        rows = [question.find(model, variant) or question.rows[model, "asked"] for question in self.questions]
        return Tallies(
            found=_array(self.metric.tally(row.answer, row.references) for row in rows),
            best=_array(self.metric.best(row.references) for row in rows),
            worst=_array(self.metric.worst(row.references) for row in rows),
        )

    def score(self, tallies: Tallies) -> Callable[[], ModelScore]:
        estimate = estimate_score(self.draws, self.groups, tallies)
        right = int((tallies.found == tallies.best).all(axis=1).sum())

        def tell() -> ModelScore:
            found = estimate()
            return ModelScore(right=right, value=found.value, low=found.low, high=found.high)

        return tell

    def difference(self, base: Tallies, tuned: Tallies) -> Callable[[], Difference]:
        estimate = estimate_gain(self.draws, self.groups, base, tuned)
        p_value = sign_flip_p_value(self.draws, self.groups, base.found, tuned.found)

        def tell() -> Difference:
            gain = estimate()
            return Difference(value=gain.value, low=gain.low, high=gain.high, p_value=p_value())

        return tell

    def at(self, places: npt.NDArray[np.intp]) -> "_Questions":
        """Those at these places."""
        return replace(self, questions=[self.questions[place] for place in places])

    @property
    def num_samples(self) -> int:
        return len(self.questions)


def _array(tallies: Iterable[tuple[float, float]]) -> Numbers:
    return np.array(list(tallies), dtype=np.float64)


def _ask_set(asked: _Questions, *, num_all: int, num_shared: int) -> Callable[[], SplitScore]:
    judged = asked.questions
    base, tuned = asked.tallies("base"), asked.tallies("tuned")
    better, better_score, variant = base, asked.score(base), ASKED
    tuned_variant = ASKED
    format_gain = content_gain = base_asked = base_instructed = None
    if any(question.find("base", "instructed") for question in judged):
        instructed = asked.tallies("base", "instructed")
        base_asked, base_instructed = better_score, asked.score(instructed)
        told = asked.tallies("tuned", "instructed")
        if _value(told) > _value(tuned):
            # Only of the retention set is the tuned model asked so; elsewhere these are the same answers.
            tuned, tuned_variant = told, INSTRUCTED
        format_gain, content_gain = asked.difference(base, instructed), asked.difference(instructed, tuned)
        if _value(instructed) > _value(base):
            better, better_score, variant = instructed, base_instructed, INSTRUCTED
    gain, tuned_score = asked.difference(better, tuned), asked.score(tuned)
    has_bare = all(question.bare is not None for question in judged)
    bare = asked.score(asked.tallies("bare")) if has_bare else None
    alone, types = _ask_alone(asked), _ask_types(asked, better, tuned)

    def tell() -> SplitScore:
        gained = gain()
        return SplitScore(
            metric=asked.metric.name,
            split=judged[0].set,
            samples=len(judged),
            samples_left_out=num_all - len(judged),
            # Which of the questions these are is not known: of those that are scored, no more than all of them.
            samples_shared=min(num_shared, len(judged)),
            groups=asked.num_groups,
            base=better_score(),
            base_variant=variant,
            base_asked=base_asked and base_asked(),
            base_instructed=base_instructed and base_instructed(),
            tuned=tuned_score(),
            tuned_variant=tuned_variant,
            bare=bare and bare(),
            gain=gained.value,
            gain_low=gained.low,
            gain_high=gained.high,
            p_value=gained.p_value,
            format=format_gain and format_gain(),
            content=content_gain and content_gain(),
            alone=alone and alone(),
            types=tuple(of_type() for of_type in types),
        )

    return tell


def _value(tallies: Tallies) -> float:
    return float(ratio(tallies.found.sum(axis=0)))


def _ask_alone(asked: _Questions) -> Callable[[], AloneScore] | None:
    places = np.flatnonzero([question.find("tuned", "alone") is not None for question in asked.questions])
    if not len(places):
        return None
    alone = asked.at(places)
    after_turns = {model: alone.score(alone.tallies(model)) for model in _COMPARED}
    by_itself = {model: alone.score(alone.tallies(model, "alone")) for model in _COMPARED}
    return lambda: AloneScore(
        samples=alone.num_samples,
        base_after_turns=after_turns["base"](),
        tuned_after_turns=after_turns["tuned"](),
        base=by_itself["base"](),
        tuned=by_itself["tuned"](),
    )


def _ask_types(asked: _Questions, base: Tallies, tuned: Tallies) -> Sequence[Callable[[], TypeScore]]:
    places: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(asked.questions):
        places[question.question_type].append(place)
    if set(places) <= {""}:
        return ()
    largest = sorted(places, key=lambda kind: (-len(places[kind]), kind))[:MAX_TYPES]
    return [_ask_type(asked, kind, np.array(places[kind]), base, tuned) for kind in largest]


def _ask_type(
    asked: _Questions, kind: str, places: npt.NDArray[np.intp], base: Tallies, tuned: Tallies
) -> Callable[[], TypeScore]:
    of_type, base, tuned = asked.at(places), base.at(places), tuned.at(places)
    base_score, tuned_score, gain = of_type.score(base), of_type.score(tuned), of_type.difference(base, tuned)
    return lambda: TypeScore(
        question_type=kind,
        samples=of_type.num_samples,
        groups=of_type.num_groups,
        base=base_score(),
        tuned=tuned_score(),
        gain=gain(),
    )
