"""The evaluate stage on a run's volume: every question asked of both models, scores, files, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.report import EvaluateNumbers, StageResult
from llava_trainer.data.encode import IGNORED, encode, encode_prompt
from llava_trainer.data.processor import load_processor
from llava_trainer.data.questions import ask_samples
from llava_trainer.data.samples import read_samples
from llava_trainer.errors import StageError
from llava_trainer.evaluation.pairs import QuestionAnswers, pair_rows
from llava_trainer.evaluation.rows import Row
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.files import sha256_file
from llava_trainer.outcome import StageOutput
from llava_trainer.stages import evaluate
from tests.trainer.runs import Recorder, run_config

PROMPTS = [{"image": "tray-0001.png", "text": "Describe this image in detail."}, {"text": "Who are you?"}]


@pytest.fixture
def root(merged_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged_root, tmp_path / "run"))


def attempts(root: Path) -> Path:
    return root / "volume" / "attempts"


def run_evaluate(root: Path, steps: list | None = None, **evaluation) -> StageOutput:
    settings = {"gpus": 0, "generation": {"maxNewTokens": 8}, "prompts": PROMPTS, "trainingSamples": 4}
    shutil.rmtree(attempts(root) / "evaluate-1", ignore_errors=True)
    config = run_config(root, StageName.EVALUATE, evaluation=settings | evaluation)
    with Recorder(config) as reporter:
        output = evaluate.run(config, reporter)
    if steps is not None:
        steps.extend(reporter.steps)
    return output


def read_rows(root: Path) -> list[Row]:
    lines = (attempts(root) / "evaluate-1" / "evaluation" / "answers.jsonl").read_text().splitlines()
    return [Row.model_validate_json(line) for line in lines]


def read_answers(root: Path) -> tuple[QuestionAnswers, ...]:
    return pair_rows(read_rows(root))


def answer_by_base(root: Path) -> list[str]:
    return [answer.base.answer for answer in read_answers(root)]


def test_every_question_is_asked_of_both_models(root: Path) -> None:
    steps: list[tuple[int, int]] = []
    output = run_evaluate(root, steps)
    answers = read_answers(root)
    assert [answer.set for answer in answers] == ["validation"] * 9 + ["train"] * 4 + ["prompt"] * 2
    held_out = list(read_samples(attempts(root) / "prepare-1" / "data" / "validation.jsonl"))
    asked = [(s.id, q.text, a.text) for s in held_out for _, q, a in s.pairs()]
    assert [(a.sample, a.question, a.references[0]) for a in answers[:9]] == asked
    assert [(a.sample, a.number) for a in answers[:2]] == [("tray-0000", 1), ("tray-0000", 2)]
    assert [a.question for a in answers[-2:]] == [prompt["text"] for prompt in PROMPTS]
    assert all(one.base.answer and one.tuned.answer and one.base.answer != one.tuned.answer for one in answers)
    # Each of both models, 13 questions of the base with the instruction, and one follow-up of both alone.
    assert steps[-1] == (45, 45)
    assert len(read_rows(root)) == 45
    assert steps == sorted(set(steps))
    assert isinstance(output.numbers, EvaluateNumbers)
    assert output.numbers.prompts == 2
    assert [(score.split, score.samples) for score in output.numbers.scores] == [("validation", 9), ("train", 4)]


def test_files_numbers_and_digests_agree(root: Path) -> None:
    output = run_evaluate(root)
    volume = run_config(root).volume
    metrics = Metrics.model_validate_json(volume.metrics_file.read_text())
    assert tuple(score.to_score() for score in metrics.scores) == output.numbers.scores
    assert (metrics.dataset.samples_train, metrics.dataset.samples_validation) == (24, 8)
    assert metrics.seconds.keys() == {"answers_of_base", "answers_of_tuned"}
    assert all(seconds > 0 for seconds in metrics.seconds.values())
    assert (metrics.dtype, metrics.prompts, metrics.run.name) == ("float32", 2, "trays")
    assert output.digests == {"report": sha256_file(volume.report_file), "metrics": sha256_file(volume.metrics_file)}
    assert sorted(file.name for file in volume.evaluation_dir.iterdir()) == [
        "answers.jsonl", "metrics.json", "report.html", "report.md",
    ]  # fmt: skip
    result = StageResult(stage=StageName.EVALUATE, attempt=1, evaluate=output.numbers, digests=dict(output.digests))
    assert len(result.to_termination_message()) < 4096


def test_right_answers_are_counted(root: Path) -> None:
    """The base's own answers are made the expected ones: it scores 1, and the tuned model, answering otherwise, 0."""
    file = attempts(root) / "prepare-1" / "data" / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()][1:]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run_evaluate(root, trainingSamples=0)
    for row, answer in zip(rows, read_answers(root), strict=False):
        row["turns"][1]["text"] = f"  {answer.base.answer.upper()}. "
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (score,) = run_evaluate(root, trainingSamples=0).numbers.scores
    assert (score.metric, score.split, score.base, score.tuned) == ("exact_match", "validation", 1.0, 0.0)
    assert (score.samples, score.groups) == (7, 7), "samples without groups are one each"
    report = (attempts(root) / "evaluate-1" / "evaluation" / "report.html").read_text()
    assert "7 of 7 right" in report
    assert "-100.0 points" in report


def test_a_repeat_gives_the_same_answers_and_another_seed_other_ones(root: Path) -> None:
    generation = {"temperature": 3.0, "seed": 7, "maxNewTokens": 8}
    run_evaluate(root, generation=generation)
    first = answer_by_base(root)
    run_evaluate(root, generation=generation)
    assert answer_by_base(root) == first
    run_evaluate(root, generation=generation | {"seed": 8})
    assert answer_by_base(root)[:-2] == first[:-2], "scores are greedy"
    assert answer_by_base(root)[-2:] != first[-2:]


def test_without_training_samples_and_prompts_only_held_out_questions_are_asked(root: Path) -> None:
    output = run_evaluate(root, trainingSamples=0, prompts=[])
    assert {answer.set for answer in read_answers(root)} == {"validation"}
    assert [score.split for score in output.numbers.scores] == ["validation"]


def test_a_follow_up_is_asked_after_the_datasets_answer_as_in_training(root: Path) -> None:
    processor = load_processor(root / "base", "pad")
    sample = next(read_samples(attempts(root) / "prepare-1" / "data" / "validation.jsonl"))
    trained = encode(sample, processor, 512)
    ends = [i for i, label in enumerate(trained.labels) if label != IGNORED and trained.labels[i - 1] == IGNORED]
    questions = list(ask_samples([sample], "validation"))
    assert len(questions) == len(ends) == 2
    for question, end in zip(questions, ends, strict=True):
        ids = encode_prompt(question.turns, question.image_turns, processor)
        assert ids == list(trained.input_ids[:end])


def test_an_image_shown_later_is_not_there_for_earlier_questions(root: Path) -> None:
    sample = next(read_samples(attempts(root) / "prepare-1" / "data" / "validation.jsonl"))
    fields = {name: getattr(sample, name) for name in ("id", "images", "turns", "source")}
    questions = list(ask_samples([type(sample)(**fields, image_turns=(2,))], "validation"))
    assert [question.images for question in questions] == [(), ("tray-0000.png",)]


def outside_by_link(root: Path) -> str:
    (root / "secret.png").write_bytes((root / "data" / "images" / "tray-0001.png").read_bytes())
    (root / "data" / "images" / "link.png").symlink_to(root / "secret.png")
    return "link.png"


def damaged(root: Path) -> str:
    file = root / "data" / "images" / "tray-0001.png"
    file.write_bytes(file.read_bytes()[:200])
    return file.name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: "gone.png", "is 'gone.png' .*does not exist"),
        (lambda root: "../export.json", "is .* must be a path inside the dataset"),
        (outside_by_link, "is 'link.png' .*leads outside the dataset"),
        (damaged, "is 'tray-0001.png' .*cannot be decoded"),
    ],
)
def test_a_prompts_image_that_cannot_be_used_is_named_before_any_model_is_loaded(
    root: Path, make, message: str
) -> None:
    prompts = [PROMPTS[1], {"image": make(root), "text": "?"}]
    shutil.rmtree(attempts(root) / "merge-1" / "merged")
    with pytest.raises(StageError, match=rf"spec.evaluation.prompts\[1\].image {message}") as caught:
        run_evaluate(root, prompts=prompts)
    assert caught.value.reason is Reason.INVALID_DATA


def test_too_little_memory_on_the_gpu_is_told_as_such(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("llava_trainer.evaluation.models.AutoModelForImageTextToText.from_pretrained", refuse)
    with pytest.raises(StageError, match=r"maxNewTokens \(is 8\).*Tried to allocate 2.00 GiB") as caught:
        run_evaluate(root)
    assert caught.value.reason is Reason.OUT_OF_DEVICE_MEMORY


def test_the_gate_is_judged_by_the_metrics_that_were_chosen(root: Path) -> None:
    """The tuned model's own answers are made the expected ones, of the last sample in one metric only."""
    run_evaluate(root, trainingSamples=0)
    file = attempts(root) / "prepare-1" / "data" / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tuned = iter([answer.tuned.answer for answer in read_answers(root)])
    for row in rows:
        for turn in row["turns"][1::2]:
            turn["text"] = next(tuned)
    rows[-1]["turns"][1]["text"] += " and more"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = {"trainingSamples": 0, "metrics": ["token_f1", "vqa_accuracy", "exact_match"]}
    output = run_evaluate(root, gate={"metric": "exact_match", "minimumGain": 0.05}, **settings)
    assert isinstance(output.numbers, EvaluateNumbers)
    assert [score.metric for score in output.numbers.scores] == ["token_f1", "exact_match"]
    f1, exact = output.numbers.scores
    # The one follow-up sees another answer before it than in the first run, and may be answered otherwise.
    assert exact.tuned in (pytest.approx(7 / 9, abs=1e-6), pytest.approx(8 / 9, abs=1e-6))
    assert exact.tuned < f1.tuned < 1
    gate = output.numbers.gate
    assert gate is not None
    assert (gate.outcome, gate.metric, gate.limit, gate.samples, gate.groups) == ("Passed", "exact_match", 0.05, 9, 8)
    assert (gate.gain, gate.low, gate.high) == (
        pytest.approx(exact.tuned - exact.base),
        exact.gain_low,
        exact.gain_high,
    )
    metrics = Metrics.model_validate_json(run_config(root).volume.metrics_file.read_text())
    assert (metrics.gate, metrics.retention, metrics.unscored) == (gate, None, ("vqa_accuracy",))
    assert run_evaluate(root, gate={"minimumGain": 0.9}, **settings).numbers.gate.outcome == "Undecided"
    # No question has references enough for the first metric: what another one judges is shown all the same.
    settings["metrics"] = ["vqa_accuracy", "exact_match"]
    assert run_evaluate(root, **settings).numbers.gate is None
    volume = run_config(root).volume
    assert all(
        "9 questions: " in file.read_text() for file in (volume.report_file, volume.report_file.with_suffix(".md"))
    )
