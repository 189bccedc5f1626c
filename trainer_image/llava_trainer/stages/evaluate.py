"""The evaluate stage: base and tuned answer the same questions; scores and a report are left on the volume."""

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch

from llava_api.failures import Reason
from llava_api.report import EvaluateNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.dataset_report import DatasetReport, summarise
from llava_trainer.data.image_folder import training_images
from llava_trainer.data.images import open_image
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.questions import Question, ask_samples
from llava_trainer.data.samples import read_samples
from llava_trainer.errors import StageError
from llava_trainer.evaluation.course import find_asked, find_hardest
from llava_trainer.evaluation.models import load_answerer
from llava_trainer.evaluation.page import AskedPrompt, PageContent, build_evaluation_page, judge_exact
from llava_trainer.evaluation.pairs import QuestionAnswers, pair_rows
from llava_trainer.evaluation.prompts import PictureSides, ask_prompts
from llava_trainer.evaluation.rows import Row
from llava_trainer.evaluation.scores import Answer, Metrics, score_answers
from llava_trainer.evaluation.settings import list_settings
from llava_trainer.files import begin_folder, publish_folder, sha256_file, write_whole
from llava_trainer.model.answering import encode_question
from llava_trainer.outcome import StageOutput
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import find_curve

_LIBRARIES = ("torch", "transformers", "peft", "deepspeed")

logger = logging.getLogger(__name__)


def run(config: RunConfig, reporter: Reporter) -> StageOutput:
    """Compare the run's merged model with what it began with: the base, or the base with the adapter that was given.

    Beside the latter the bare base is asked as well. Progress counts every answer of each model.

    Raises:
        StageError: a prompt's image cannot be opened, or the GPU's memory does not suffice.
    """
    questions = [*_ask_dataset(config), *ask_prompts(config)]
    processor = load_processor(config.model_dir, config.dataset.image_aspect_ratio)
    given = config.volume.given_adapter_dir if _goes_on(config) else None
    progress = _Progress(reporter=reporter, total=(2 if given is None else 3) * len(questions))
    clock = _Clock()
    bare: Sequence[str | None] = [None] * len(questions)
    if given is not None:
        with clock.phase("answers_of_bare_base"):
            bare = _answer_all(config, config.model_dir, questions, processor, progress)
    with clock.phase("answers_of_base"):
        base = _answer_all(config, config.model_dir, questions, processor, progress, adapter_dir=given)
    with clock.phase("answers_of_tuned"):
        tuned = _answer_all(config, config.volume.merged_dir, questions, processor, progress)
    answers = [Answer.of(*row) for row in zip(questions, base, tuned, bare, strict=True)]
    dataset = DatasetReport.model_validate_json(config.volume.dataset_report_json.read_bytes())
    metrics = _measure(config, dataset, answers, clock.seconds)
    page = _build_page(config, dataset, answers, metrics)
    aside = begin_folder(config.volume.evaluation_dir)
    write_whole(aside / config.volume.answers_file.name, "".join(f"{answer.model_dump_json()}\n" for answer in answers))
    write_whole(aside / config.volume.metrics_file.name, metrics.model_dump_json(indent=2) + "\n")
    write_whole(aside / config.volume.report_file.name, page)
    reporter.fence.check()
    publish_folder(config.volume.evaluation_dir)
    for score in metrics.scores:
        logger.info(
            "%s on %s: base %.3f, tuned %.3f (%d questions, %d of groups that training has, too)",
            score.metric, score.split, score.base.value, score.tuned.value, score.samples, score.samples_shared,
        )  # fmt: skip
    return StageOutput(
        numbers=EvaluateNumbers(
            scores=tuple(score.to_score() for score in metrics.scores), prompts=len(config.evaluation.prompts)
        ),
        digests={
            "report": sha256_file(config.volume.report_file),
            "metrics": sha256_file(config.volume.metrics_file),
        },
    )


@dataclass
class _Progress:
    """Answers so far, over both models."""

    reporter: Reporter
    total: int
    done: int = 0

    def add(self, answered: int) -> None:
        self.done += answered
        self.reporter.update(self.done, self.total)


@dataclass
class _Clock:
    """Seconds of each phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 3)


def _ask_dataset(config: RunConfig) -> list[Question]:
    held_out = ask_samples(read_samples(config.volume.validation_file), "validation")
    if config.evaluation.training_samples == 0:
        return list(held_out)
    seen = islice(read_samples(config.volume.train_file), config.evaluation.training_samples)
    return [*held_out, *ask_samples(seen, "train")]


def _goes_on(config: RunConfig) -> bool:
    """Whether training has gone on from an adapter that was given, which is what it is to be compared with."""
    return config.model.adapter is not None and config.training.method != "none"


def _answer_all(
    config: RunConfig, model_dir: Path, questions: list[Question], processor: Processor, progress: _Progress,
    *, adapter_dir: Path | None = None,
) -> list[str]:  # fmt: skip
    """Answers of the model in ``model_dir``, in the questions' order: the dataset's first, the prompts' last."""
    device, dtype = _device(config)
    generation = config.evaluation.generation
    folder = training_images(config)
    encoded = [encode_question(question, processor, folder) for question in questions]
    num_scored = sum(question.expected is not None for question in questions)
    try:
        with load_answerer(model_dir, processor, device, dtype, adapter_dir=adapter_dir) as answerer:
            answers = answerer.answer_greedily(encoded[:num_scored], generation.max_new_tokens, progress.add)
            for prompt in encoded[num_scored:]:
                answers.append(answerer.answer_as_told(prompt, generation))
                progress.add(1)
    except torch.OutOfMemoryError as error:
        raise StageError(
            Reason.OUT_OF_DEVICE_MEMORY,
            f"answering with {model_dir} needs more memory than the GPU has: lower "
            f"spec.evaluation.generation.maxNewTokens (is {generation.max_new_tokens}) or schedule evaluation on a "
            f"larger GPU ({error})",
        ) from error
    return answers


def _device(config: RunConfig) -> tuple[str, torch.dtype]:
    return ("cuda", torch.bfloat16) if config.evaluation.num_gpus > 0 else ("cpu", torch.float32)


def _measure(config: RunConfig, dataset: DatasetReport, answers: list[Answer], seconds: dict[str, float]) -> Metrics:
    device, dtype = _device(config)
    return Metrics(
        run=config.run,
        finished_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})",
        dtype=str(dtype).removeprefix("torch."),
        scores=score_answers(answers, num_shared=dataset.shared.pairs),
        prompts=len(config.evaluation.prompts),
        generation=config.evaluation.generation,
        dataset=summarise(dataset),
        seconds=seconds,
        versions={name: version(name) for name in _LIBRARIES},
    )


def _build_page(config: RunConfig, dataset: DatasetReport, answers: list[Answer], metrics: Metrics) -> str:
    folder = training_images(config)
    paired = _pair(answers)
    # All of training's samples are read for it.
    shows = any(prompt.image is not None for prompt in config.evaluation.prompts)
    sides = PictureSides.read(config.volume) if shows else PictureSides()
    return build_evaluation_page(
        PageContent(
            metrics=metrics,
            dataset=dataset,
            questions=[question for question in paired if question.set != "prompt"],
            prompts=[
                AskedPrompt(answers=question, picture_side=sides.tell(question.images))
                for question in paired
                if question.set == "prompt"
            ],
            curve=find_curve(config.volume),
            asked=find_asked(config),
            hardest=find_hardest(config),
            settings=list_settings(config),
            load_image=lambda path: open_image(folder.find(path)),
            judge=judge_exact,
        )
    )


def _pair(answers: Sequence[Answer]) -> tuple[QuestionAnswers, ...]:
    """The answers as rows."""
    rows = []
    for place, answer in enumerate(answers):
        for model, text in (("bare", answer.bare), ("base", answer.base), ("tuned", answer.tuned)):
            if text is not None:
                rows.append(
                    Row.model_validate(
                        {
                            "question_id": f"{answer.split}/{place}/{answer.number}",
                            "set": answer.split,
                            "group": "",
                            "references": () if answer.expected is None else (answer.expected,),
                            "model": model,
                            "answer": text,
                            **answer.model_dump(include={"sample", "number", "images", "question"}),
                        }
                    )
                )
    return pair_rows(rows)
