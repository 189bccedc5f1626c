"""A pod's part of the questions, answered by every model of the run: batch by batch, each kept as soon as it is there.

Batches follow from the shard's questions alone. All models get the same ones, and so does a pod that goes on from what
another has left: a batch of which a row is missing is answered again as a whole.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import zip_longest

from llava_api.spec import Generation
from llava_trainer.evaluation.asking import Asking, Key, is_answer_to, make_row
from llava_trainer.evaluation.rows import Model, Row, Variant
from llava_trainer.evaluation.shard_file import Repeats, ShardWriter
from llava_trainer.model.answering import Answerer, EncodedPrompt, Generated, plan_batches

MOST_REPEATED = 16
"""Questions of a shard that are asked again one by one, where that may change answers. At 7 to a batch they take as
long as a hundred others."""

logger = logging.getLogger(__name__)
Open = Callable[[Model], AbstractContextManager[Answerer]]
"""Loads a model; it is given back when the context is left."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """An asking as the models are fed."""

    asking: Asking
    encoded: EncodedPrompt


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """What a pod has to answer, and how."""

    prompts: Sequence[Prompt]
    models: tuple[Model, ...]
    """Of the run, in the order in which they answer."""
    generation: Generation
    is_repeated: bool
    """Whether some questions are asked again one by one: where answers depend on the batch."""

    def batches(self, model: Model) -> list[list[Prompt]]:
        """What a model answers at a time. Prompts of the spec are asked alone, as they are drawn by their own seed."""
        return [batch for batch in self._all_batches if model in batch[0].asking.models(self.models)]

    @property
    def num_answers(self) -> int:
        """Of all models."""
        return sum(len(batch) for model in self.models for batch in self.batches(model))

    @property
    def _all_batches(self) -> list[list[Prompt]]:
        kinds: dict[tuple[Variant, tuple[Model, ...]], list[Prompt]] = {}
        for one in self.prompts:
            if not one.asking.is_prompt:
                # A batch goes to a model as a whole.
                kinds.setdefault((one.asking.variant, one.asking.models(self.models)), []).append(one)
        of_kinds = []
        for alike in kinds.values():
            planned = plan_batches([len(one.encoded.ids) for one in alike], self.generation.max_new_tokens)
            of_kinds.append([[alike[index] for index in batch] for batch in planned])
        # In turns: as long as their images are kept, the same questions in the next way need not read them.
        batches = [batch for turn in zip_longest(*of_kinds) for batch in turn if batch is not None]
        return batches + [[one] for one in self.prompts if one.asking.is_prompt]

    def repeated(self) -> list[Prompt]:
        """Those that are asked again: of the questions as they are asked, by chance that is always the same."""
        asked = [one for one in self.prompts if one.asking.variant == "asked" and not one.asking.is_prompt]
        order = sorted(asked, key=lambda one: hashlib.sha256(one.asking.question.id.encode()).digest())
        return order[:MOST_REPEATED] if self.is_repeated else []


@dataclass(kw_only=True)
class Progress:
    """Answers so far, told after each batch."""

    tell: Callable[[int], None]
    done: int = 0

    def add(self, answered: int) -> None:
        """Count answers."""
        self.done += answered
        self.tell(self.done)


def answer_shard(
    plan: ShardPlan, left: Mapping[Key, Row], writer: ShardWriter, open_model: Open, progress: Progress
) -> None:
    """Answer everything that is not yet, and finish the file.

    Args:
        plan: what to answer.
        left: rows that pods before have left.
        writer: where all rows go.
        open_model: loads one of the run's models; not called for one that has nothing left to answer.
        progress: told what is answered.
    """
    done = _Done()
    for model in plan.models:
        begun = time.monotonic()
        missing = []
        for batch in plan.batches(model):
            kept = [_find(left, prompt.asking, model) for prompt in batch]
            rows = [row for row in kept if row is not None]
            if len(rows) < len(batch):
                missing.append(batch)
                continue
            writer.append(rows)
            done.take(rows)
            progress.add(len(rows))
        _answer(plan, model, missing, writer, open_model, progress, done)
        done.seconds[model] = round(time.monotonic() - begun, 3)
    writer.finish(done.seconds, done.repeats)


@dataclass(kw_only=True)
class _Done:
    """What has come of it besides rows."""

    seconds: dict[Model, float] = field(default_factory=dict)
    repeats: list[Repeats] = field(default_factory=list)
    answers: dict[tuple[str, Model], str] = field(default_factory=dict)
    """To questions as they were asked."""

    def take(self, rows: Sequence[Row]) -> None:
        self.answers |= {(row.question_id, row.model): row.answer for row in rows if row.variant == "asked"}


def _answer(
    plan: ShardPlan, model: Model, batches: Sequence[Sequence[Prompt]], writer: ShardWriter, open_model: Open,
    progress: Progress, done: _Done,
) -> None:  # fmt: skip
    repeated = plan.repeated()
    if not batches and not repeated:
        return
    with open_model(model) as answerer:
        for batch, generated in _generate_all(answerer, batches, plan.generation):
            rows = [
                make_row(prompt.asking, model, answer=one.text, is_cut=one.is_cut, is_close=one.is_close)
                for prompt, one in zip(batch, generated, strict=True)
            ]
            writer.append(rows)
            done.take(rows)
            progress.add(len(rows))
        if repeated:
            again = {
                one.asking.question.id: answerer.answer_batch([one.encoded], plan.generation.max_new_tokens)[0].text
                for one in repeated
            }
            changed = sum(done.answers[question, model] != text for question, text in again.items())
            done.repeats.append(Repeats(model=model, asked=len(again), changed=changed))
            logger.info("%d of %d answers of %s come out otherwise one by one", changed, len(again), model)


def _generate_all(
    answerer: Answerer, batches: Sequence[Sequence[Prompt]], generation: Generation
) -> Iterator[tuple[Sequence[Prompt], list[Generated]]]:
    """Each batch with its answers, those of questions first; while one is answered, the next one's images are read."""
    greedy = [batch for batch in batches if not batch[0].asking.is_prompt]
    with ThreadPoolExecutor(max_workers=1) as reading:
        prepared = (reading.submit(answerer.prepare, [one.encoded for one in batch]) for batch in greedy)
        coming = next(prepared, None)
        for batch in greedy:
            assert coming is not None
            ready, coming = coming.result(), next(prepared, None)
            yield batch, answerer.answer_prepared(ready, generation.max_new_tokens)
    for batch in batches:
        if batch[0].asking.is_prompt:
            yield batch, [answerer.answer_as_told(one.encoded, generation) for one in batch]


def _find(known: Mapping[Key, Row], asking: Asking, model: Model) -> Row | None:
    row = known.get((asking.question.id, model, asking.variant))
    return row if row is not None and is_answer_to(row, asking) else None
