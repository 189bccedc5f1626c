"""Which questions evaluation asks, and which pod asks which. The same for the same volume, seed and number of pods."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llava_api.run_config import RunConfig
from llava_trainer.data.questions import Question, ask_sample, ask_samples
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.samples import read_samples
from llava_trainer.evaluation.prompts import ask_prompts


def list_questions(config: RunConfig) -> list[Question]:
    """Everything that is asked: held-out questions, those of training samples and of the retention set, prompts.

    Raises:
        StageError: a prompt's image cannot be opened.
        ValueError: a file of samples was damaged after it was written.
    """
    seen = draw_training(config.volume.train_file, config.evaluation.training_samples, seed=config.training.seed)
    held_out = ask_samples(read_samples(config.volume.validation_file), "validation")
    has_second = config.evaluation.retention is not None
    second = ask_samples(read_samples(config.volume.retention_file), "retention") if has_second else ()
    return [*held_out, *seen, *second, *ask_prompts(config)]


def draw_training(file: Path, num_samples: int, *, seed: int) -> list[Question]:
    """Questions of training samples, drawn as held-out ones are.

    Whole groups are taken in an order that follows from seed and group alone; the last one is cut where the number is
    reached.

    Args:
        file: of the training samples.
        num_samples: how many samples; all where there are fewer.
        seed: of the order.

    Returns:
        Their questions, in the file's order.

    Raises:
        ValueError: the file was damaged after it was written.
    """
    if num_samples == 0:
        return []
    groups: dict[str, list[int]] = {}
    with SampleFile(file) as samples:
        for place in range(len(samples)):
            groups.setdefault(samples[place].group_key or str(place), []).append(place)
        order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
        drawn = [place for group in order for place in groups[group]][:num_samples]
        return [question for place in sorted(drawn) for question in ask_sample(samples[place], "train", place)]


def deal(questions: Sequence[Question], num_shards: int) -> list[list[Question]]:
    """Give each question to one of the shards, as many to each as can be.

    What is asked about the same images stays together: they are read once.
    """
    together: dict[tuple[object, ...], list[Question]] = {}
    for question in questions:
        # The retention set has a folder of its own.
        shown = (question.set == "retention", *question.images)
        together.setdefault(shown if question.images else (question.set, question.place), []).append(question)
    shards: list[list[Question]] = [[] for _ in range(num_shards)]
    # The largest first, so that the last ones level out.
    for group in sorted(together.values(), key=len, reverse=True):
        min(shards, key=len).extend(group)
    place = {question.id: number for number, question in enumerate(questions)}
    return [sorted(shard, key=lambda question: place[question.id]) for shard in shards]
