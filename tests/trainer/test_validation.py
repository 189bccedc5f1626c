"""Held-out samples while it trains: what is measured, on how many processes, and what follows from it."""

import json
import logging
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from llava_api.constants import StageName
from llava_api.report import TrainNumbers
from llava_api.run_config import RunConfig
from llava_api.spec import Training
from llava_trainer.data.collate import collate
from llava_trainer.data.encode import encode, encode_prompt
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.model_config import load_config
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.samples import Sample, Turn, write_samples
from llava_trainer.errors import StageError
from llava_trainer.files import remove_folder, sha256_file
from llava_trainer.gang.stopping import StopAgreement, StopRequest
from llava_trainer.gang.world import World
from llava_trainer.model.head import CHUNK_ELEMENTS, judge_tokens
from llava_trainer.model.learning import trained_whole
from llava_trainer.model.loading import load_model, load_tuned
from llava_trainer.reporting import Reporter
from llava_trainer.stages import merge
from llava_trainer.training import resuming
from llava_trainer.training.batches import RowLoader
from llava_trainer.training.checkpoint import CheckpointState, DamagedCheckpointError, verify_files
from llava_trainer.training.curve import CurvePoint, read_curve
from llava_trainer.training.model_under_training import build_model
from llava_trainer.training.phase import phase_of
from llava_trainer.training.resuming import _read_selection
from llava_trainer.training.retention import list_checkpoints, step_of
from llava_trainer.training.selection import Selection
from llava_trainer.training.train import train
from llava_trainer.training.validation import (
    MAX_TOLD,
    Validation,
    Validator,
    count_exact,
    draw_samples,
    is_to_be_told,
)
from tests.trainer.attempts import begin
from tests.trainer.many import run_in_processes
from tests.trainer.trained import load_trained
from tests.trainer.trainings import StopAfter, make_dataset, make_training, text_only

VALIDATION = {"everySteps": 2, "samples": 7}
MAX_NEW_TOKENS = 40
logger = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """Images with one answer, with two, and without an image; the last one is cut off before its second answer."""
    folder = tmp_path_factory.mktemp("dataset")
    samples = make_dataset(folder)
    return folder, samples


def held_out_of(samples: list[Sample]) -> list[Sample]:
    more = (Turn(role="user", text="And in other words?"), Turn(role="assistant", text="the tray of the code"))
    twice = [
        Sample(id=f"{s.id}-twice", images=s.images, image_turns=s.image_turns, turns=(*s.turns, *more), source=s.source)
        for s in samples[:2]
    ]
    return [*samples[2:5], *twice, text_only(samples[5])]


@pytest.fixture
def configure(tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]]):
    folder, samples = dataset
    (tmp_path / "dataset").symlink_to(folder)

    def make(*, attempt: int = 1, held_out: list[Sample] | None = None, **training: Any) -> RunConfig:
        own = {"validation": VALIDATION, "warmupRatio": 0.0} | training
        config = make_training(tmp_path, toy_model_dir, samples[8:24], attempt=attempt, training=own)
        write_samples(config.volume.validation_file, held_out_of(samples) if held_out is None else held_out)
        write_samples(config.volume.selection_file, held_out_of(samples) if held_out is None else held_out)
        return config

    return make


def run(config: RunConfig, world: World, stop: StopRequest | None = None) -> TrainNumbers:
    begin(config)
    with Reporter(config) as reporter:
        numbers = train(config, world, reporter, stop or StopRequest())
    assert numbers is not None
    return numbers


def curve(config: RunConfig) -> list[CurvePoint]:
    return read_curve(config.volume.history_file(config.run.stage, config.run.attempt))


def validate(world: World, config: RunConfig) -> Validation:
    """What a validation of the untrained model shows."""
    phase = phase_of(config)
    assert phase.held_out_file is not None
    assert phase.training.validation is not None
    with SampleFile(phase.held_out_file) as samples:
        validator = Validator(
            settings=phase.training.validation, phase=phase, model=build_model(config, phase, world), world=world,
            samples=samples, processor=load_processor(config.model_dir, "pad"), beat=lambda doing: None,
        )  # fmt: skip
        return validator.validate(StopAgreement(StopRequest(), world))


def look_at(
    tuned: Any, sample: Sample, images: ImageFolder, processor: Processor
) -> tuple[float, int, torch.Tensor | None]:
    """A sample's summed loss by transformers' own forward pass, its supervised tokens, and its pixels."""
    pixels = [pixel_values(open_image(images.find(name)), processor) for name in sample.images]
    encoded = encode(sample, processor, 256)
    batch = collate([(encoded, np.stack(pixels) if pixels else None)], processor.pad_token_id)
    labels, _ = batch.pop("labels"), batch.pop("predicting")
    with torch.no_grad():
        logits = tuned(**batch, use_cache=False).logits
    assert labels is not None
    loss = cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum").item()
    return loss, encoded.num_supervised, batch["pixel_values"]


def loss_of(tuned: Any, config: RunConfig, processor: Processor, file: Path | None = None) -> float:
    """Loss a token of held-out samples, those that training looks at or others, by transformers alone."""
    held_out_file, images = file or phase_of(config).held_out_file, phase_of(config).images
    assert held_out_file is not None
    with SampleFile(held_out_file) as samples:
        looked = [look_at(tuned, samples[index], images, processor) for index in range(len(samples))]
    return sum(loss for loss, _, _ in looked) / sum(tokens for _, tokens, _ in looked)


# --- what is measured


def test_each_token_is_judged_as_torch_judges_it() -> None:
    torch.manual_seed(1)
    weight = torch.randn(CHUNK_ELEMENTS // 100, 4)
    hidden, targets = torch.randn(250, 4), torch.randint(0, len(weight), (250,))
    targets[:100] = (hidden[:100] @ weight.T).argmax(dim=1)
    losses, likeliest = judge_tokens(hidden, weight, targets).T
    torch.testing.assert_close(losses, cross_entropy(hidden @ weight.T, targets, reduction="none"))
    assert likeliest[:100].all()
    assert not likeliest[100:].any()
    assert judge_tokens(hidden[:0], weight, targets[:0]).shape == (0, 2)


def test_loss_and_exact_answers_are_those_of_transformers(
    configure, world: World, dataset: tuple[Path, list[Sample]], toy_processor: Processor
) -> None:
    """After some training, so that some answers are exact: the loss of its own forward pass, and what it generates."""
    config = configure(epochs=25, learningRate=2e-2, validation={"everySteps": 1000, "samples": 100},
                       held_out=[*held_out_of(dataset[1]), *dataset[1][8:14]])  # fmt: skip
    numbers = run(config, world)
    last = curve(config)[-1]
    assert (last.validation_loss, last.validation_exact) == (numbers.validation_loss, numbers.validation_exact)
    tuned = load_tuned(config.model_dir, config.volume.adapter_dir, torch.float32, "cpu").get_base_model()
    exact = answers = 0
    with SampleFile(config.volume.validation_file) as samples:
        for sample in (samples[index] for index in range(len(samples))):
            pixels = look_at(tuned, sample, phase_of(config).images, toy_processor)[2]
            for before, question, answer in sample.pairs():
                ids = encode_prompt((*before, question), sample.image_turns, toy_processor)
                generated = tuned.generate(
                    input_ids=torch.tensor([ids]), max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
                    **({} if pixels is None else {"pixel_values": pixels}),
                )[0, len(ids) :]  # fmt: skip
                said = toy_processor.tokenizer.decode(generated, skip_special_tokens=True).strip()
                exact += said == answer.text
                answers += 1
    assert numbers.validation_loss == pytest.approx(loss_of(tuned, config, toy_processor), abs=1e-5)
    assert numbers.validation_exact == pytest.approx(exact / answers)
    assert 0 < exact < answers, "or it tells nothing"


def test_only_whole_answers_count(dataset: tuple[Path, list[Sample]], toy_processor: Processor) -> None:
    """The second answer of one is cut off; of two answers in a row one may be exact and the other not."""
    [sample] = held_out_of(dataset[1])[3:4]
    length = encode(sample, toy_processor, 10_000).full_length
    for limit, whole in ((10_000, 2), (length - 1, 1)):
        loader = RowLoader(
            samples=[sample, sample],
            processor=toy_processor,
            images=ImageFolder(root=dataset[0], name="images"),
            max_length=limit,
        )
        micro_batch = loader.load(((0,), (1,)))
        likeliest = np.ones(micro_batch.num_supervised, dtype=bool)
        assert count_exact(micro_batch, likeliest, toy_processor.eos_token_id) == (2 * whole, 2 * whole)
        likeliest[0] = False
        assert count_exact(micro_batch, likeliest, toy_processor.eos_token_id) == (2 * whole - 1, 2 * whole)
    assert count_exact(loader.load(()), likeliest[:0], toy_processor.eos_token_id) == (0, 0)


def test_samples_are_drawn_once_for_all() -> None:
    assert draw_samples(5, 9, seed=1) == draw_samples(5, 5, seed=2) == (0, 1, 2, 3, 4)
    drawn = draw_samples(1000, 50, seed=1)
    assert drawn == draw_samples(1000, 50, seed=1) == tuple(sorted(set(drawn)))
    assert drawn != draw_samples(1000, 50, seed=2)


@pytest.mark.parametrize(("processes", "stage"), [(2, 2), (2, 3), (4, 0)])
def test_the_same_from_the_same_weights_on_any_number_of_processes(
    configure, world: World, processes: int, stage: int
) -> None:
    batch = {"perDevice": 2, "global": 8}
    alone = validate(world, configure(batch=batch, zero={"stage": 0}))
    assert alone.answers == 8
    config = configure(batch=batch, zero={"stage": stage})
    for shared in run_in_processes(processes, validate, config):
        assert shared.loss == pytest.approx(alone.loss, abs=1e-6)
        assert (shared.exact, shared.answers, shared.samples) == (alone.exact, alone.answers, alone.samples)


@pytest.mark.parametrize(("method", "answers"), [("lora", None), ("qlora", None), ("qlora", {"questions": 1})])
def test_training_is_the_same_with_and_without(
    configure, world: World, method: str, answers: dict[str, int] | None
) -> None:
    """Dropout, order and what is learned do not see it, quantised weights included."""
    own = {"epochs": 2, "method": method, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
    with_it = configure(attempt=1, **own, validation=VALIDATION | ({"answers": answers} if answers else {}))
    run(with_it, world)
    expected = [entry.loss for entry in curve(with_it)]
    digest = sha256_file(with_it.volume.adapter_dir / "adapter_model.safetensors")
    seen_at = [entry.step for entry in curve(with_it) if entry.validation_loss is not None]
    without = configure(attempt=2, **own, validation=None)
    run(without, world)
    assert [entry.loss for entry in curve(without)] == expected
    assert seen_at == [2, 4]
    assert all(entry.validation_loss is None for entry in curve(without))
    assert sha256_file(without.volume.adapter_dir / "adapter_model.safetensors") == digest


class Reports(Reporter):
    """Keeps what is reported instead of pushing it."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.told: list[tuple[int, Any]] = []

    def update(self, step: int, total_steps: int, **measures: Any) -> None:
        self.told.append((step, measures))


def report_all(config: RunConfig, world: World, stop: StopRequest | None = None) -> list[tuple[int, Any]]:
    begin(config)
    with Reports(config) as reports, suppress(StageError):
        train(config, world, reports, stop or StopRequest())
    return reports.told


class StopWhileLooking(StopRequest):
    """Asks to stop between two micro-batches of the validation after ``steps`` steps of one micro-batch each."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps, self._begun = steps, 0

    @property
    def received(self) -> bool:
        self._begun += 1
        return False

    @received.setter
    def received(self, value: bool) -> None:
        pass

    @property
    def received_meanwhile(self) -> bool:
        return self._begun >= self._steps


def test_a_validation_at_resume_is_in_curve_and_reports(configure, world: World) -> None:
    """The attempt before was asked to stop while it looked: its step is in the curve, without what was not seen."""
    settings = {"batch": {"perDevice": 4, "global": 4}, "epochs": 2, "checkpoint": {"everySteps": 100, "keep": 2}}
    whole = configure(attempt=1, **settings)
    run(whole, world)
    expected = [(entry.step, entry.loss, entry.validation_loss, entry.validation_exact) for entry in curve(whole)]
    remove_folder(whole.volume.root / "attempts" / "train-1")
    stopped = configure(attempt=2, **settings)
    report_all(stopped, world, StopWhileLooking(2))
    assert [(entry.step, entry.validation_loss) for entry in curve(stopped)] == [(1, None), (2, None)]
    resumed = configure(attempt=3, **settings)
    told = report_all(resumed, world)
    assert [(e.step, e.loss, e.validation_loss, e.validation_exact) for e in curve(resumed)] == expected
    seen_first = next(measures for step, measures in told if step == 2 and "validation_step" in measures)
    assert (seen_first["validation_step"], seen_first["validation_loss"]) == (2, expected[1][2])
    assert seen_first["loss"] == expected[1][1], "the step before it is told, too"


def test_a_validation_tells_how_far_it_is(configure, world: World, dataset: tuple[Path, list[Sample]]) -> None:
    config = configure(batch={"perDevice": 1, "global": 8}, validation={"everySteps": 1, "samples": 30}, epochs=1,
                       held_out=dataset[1][:30])  # fmt: skip
    told = [measures for step, measures in report_all(config, world) if step == 1]
    looking = [measures["validating_samples"] for measures in told if "validating_samples" in measures]
    assert len(looking) == MAX_TOLD
    assert looking == sorted(set(looking))
    assert looking[-1] == 30
    assert told[-1]["validation_step"] == 1
    assert "validating_samples" not in told[-1], "it is over"
    assert told[1]["message"] == f"looks at held-out samples: {looking[0]} of 30"


@pytest.mark.parametrize("total", [1, 3, 19, 20, 21, 1000])
def test_how_far_it_is_is_told_so_many_times(total: int) -> None:
    told = [done for done in range(1, total + 1) if is_to_be_told(done, total)]
    assert len(told) == min(total, MAX_TOLD)
    assert told[-1] == total


def test_what_the_steps_took_is_told(configure, world: World) -> None:
    config = configure(epochs=2)
    told = report_all(config, world)
    for entry in curve(config):
        assert entry.data_wait_ratio is not None
        assert 0 <= entry.data_wait_ratio <= 1
        assert entry.peak_gpu_memory_bytes is None, "there is no GPU"
        assert entry.eta_seconds is not None
        assert (entry.validation_seconds is None) == (entry.validation_loss is None)
    assert all({"data_wait_ratio", "eta_seconds"} <= set(measures) for _, measures in told)
    assert told[-1][1]["eta_seconds"] == 0


# --- what follows


def seen(loss: float, exact: float | None = None) -> Validation:
    return Validation(loss=loss, exact=exact, answers=4, samples=4, seconds=0.0)


def judge_all(training: dict[str, Any], *validations: Validation) -> Selection:
    settings = Training.model_validate({"validation": VALIDATION, **training})
    selection = Selection()
    for step, validation in enumerate(validations, start=1):
        selection = selection.judge(step, validation, settings)
    return selection


def test_the_best_is_the_first_of_the_best() -> None:
    by_loss = {"keepBest": {"by": "loss"}}
    found = judge_all(by_loss, seen(2.0, 0.1), seen(1.0, 0.2), seen(1.0, 0.5), seen(3.0, 0.9))
    assert (found.best_step, found.best_loss, found.without_improvement, found.validated_step) == (2, 1.0, 2, 4)
    by_exact = {"keepBest": {"by": "exact"}}
    found = judge_all(by_exact, seen(2.0, 0.1), seen(1.0, 0.2), seen(1.0, 0.5), seen(3.0, 0.5))
    assert (found.best_step, found.best_exact) == (3, 0.5)
    # Where no answer is ever exact, the loss decides: not the weights that have learned least.
    assert judge_all(by_exact, seen(2.0), seen(1.0), seen(0.5)).best_step == 3
    assert judge_all(by_exact, seen(2.0, 0.0), seen(0.5, 0.0), seen(1.0, 0.0)).best_step == 2
    for training in (by_loss, by_exact):
        assert judge_all(training, seen(math.nan, None), seen(2.0), seen(1.0)).best_step == 3, "NaN is no best"


def test_the_best_is_the_best_whatever_counts_as_an_improvement() -> None:
    training = {"keepBest": {"by": "loss"}, "earlyStopping": {"patience": 3, "minimumDelta": 0.01}}
    found = judge_all(training, seen(1.0), seen(0.995), seen(0.991))
    assert (found.best_step, found.best_loss, found.without_improvement) == (3, 0.991, 2)
    assert judge_all(training, seen(1.0), seen(0.995), seen(0.989)).without_improvement == 0


@pytest.mark.parametrize(
    "fields",
    [{"best_step": "3"}, {"best_loss": "x"}, {"without_improvement": None}, {"novelty": 1}, {"best_step": [1]}],
)
def test_a_selection_that_is_none_is_none(fields: dict[str, Any]) -> None:
    """Another run's checkpoint, or a newer image's, may hold anything."""
    state = CheckpointState(step=1, total_steps=2, world_size=1, seed=1, parameters={}, selection=fields)
    assert _read_selection(state) == Selection()
    known = judge_all({}, seen(2.0, 0.5), seen(1.0))
    told = CheckpointState(
        step=1, total_steps=2, world_size=1, seed=1, parameters={}, selection=json.loads(json.dumps(known.to_fields()))
    )
    assert _read_selection(told) == known


def test_patience_counts_what_is_no_improvement() -> None:
    training = {"earlyStopping": {"patience": 2, "minimumDelta": 0.1}}
    settings = Training.model_validate({"validation": VALIDATION, **training})
    assert not judge_all(training, seen(1.0), seen(0.95)).is_over(settings)
    assert judge_all(training, seen(1.0), seen(0.95), seen(0.91)).is_over(settings)
    assert not judge_all(training, seen(1.0), seen(0.95), seen(0.875)).is_over(settings)
    assert judge_all(training, seen(1.0), seen(math.nan), seen(math.nan)).is_over(settings)


OVERFIT = {
    "method": "full", "epochs": 30, "learningRate": 5e-3, "keepBest": {"by": "loss"},
    "validation": {"everySteps": 6, "samples": 9},
}  # fmt: skip


def mislabel(samples: list[Sample]) -> list[Sample]:
    """Held-out samples whose answers are those of others: the more is learned, the worse they fit."""
    answers = [sample.turns[-1] for sample in samples]
    return [
        Sample(id=s.id, images=s.images, image_turns=s.image_turns, turns=(*s.turns[:-1], answer), source=s.source)
        for s, answer in zip(samples, [*answers[3:], *answers[:3]], strict=True)
    ]


@pytest.fixture
def overfit(configure, dataset: tuple[Path, list[Sample]]):
    def make(**changes: Any) -> RunConfig:
        return configure(held_out=mislabel(dataset[1][8:17]), **OVERFIT | changes)

    return make


def test_the_best_weights_are_the_result_and_their_checkpoint_stays(
    overfit, world: World, toy_processor: Processor
) -> None:
    config = overfit(checkpoint={"everySteps": 4, "keep": 1})
    numbers = run(config, world)
    losses = {entry.step: entry.validation_loss for entry in curve(config) if entry.validation_loss is not None}
    best = min(losses, key=lambda step: losses[step])
    assert list(losses) == [6, 12, 18, 24, 30, 36, 42, 48, 54, 60]
    assert best < 48, "it does not over-fit: the test tells nothing"
    assert (numbers.best_step, numbers.validation_loss, numbers.steps) == (best, losses[best], 60)
    kept = list_checkpoints(config.volume.checkpoints_dir(StageName.TRAIN, 1))
    assert best in [step_of(folder) for folder in kept]
    assert len(kept) == 2, "the best, and the newest one"
    assert losses[60] > losses[best] + 0.1, "the last weights would be seen to be others"
    learned = trained_whole(config.training, load_config(config.model_dir))
    taken = load_trained(config.model_dir, config.volume.weights_dir, learned=learned)
    assert loss_of(taken, config, toy_processor) == pytest.approx(losses[best], abs=1e-5)


def test_the_best_is_merged_and_better_than_the_last_on_samples_that_have_not_selected(
    overfit, world: World, toy_processor: Processor, dataset: tuple[Path, list[Sample]]
) -> None:
    samples = dataset[1]
    found = {}
    for name, changes in {"best": {}, "last": {"keepBest": None}}.items():
        config = overfit(**changes)
        for folder in config.volume.attempts_dir.glob("[tm]*-1"):
            # Of the other one.
            remove_folder(folder)
        # As prepare leaves them: those that select are not those that judge.
        write_samples(config.volume.selection_file, mislabel(samples[8:17]))
        write_samples(config.volume.validation_file, mislabel(samples[17:24]))
        run(config, world)
        results = {**config.results, StageName.TRAIN: 1}
        of_merge = config.run.model_copy(update={"stage": StageName.MERGE})
        merging = config.model_copy(update={"run": of_merge, "results": results})
        begin(merging)
        with Reporter(merging) as reporter:
            merge.run(merging, reporter)
        merged = load_model(merging.volume.merged_dir, torch.float32, "cpu")
        found[name] = loss_of(merged, config, toy_processor, config.volume.validation_file)
    logger.info("loss on the test part: best %.3f, last %.3f", found["best"], found["last"])
    assert found["best"] < found["last"] - 0.1


def test_selection_survives_a_restart(overfit, world: World) -> None:
    whole_run = overfit(attempt=1)
    whole, entire = run(whole_run, world), curve(whole_run)
    # Another attempt would go on from it.
    remove_folder(whole_run.volume.root / "attempts" / "train-1")
    first = overfit(attempt=2)
    with pytest.raises(StageError, match="Interrupted"):
        run(first, world, StopAfter(44))
    second = overfit(attempt=3)
    resumed = run(second, world)
    assert (resumed.best_step, resumed.validation_loss) == (whole.best_step, whole.validation_loss)
    assert [e.validation_loss for e in curve(second)] == [e.validation_loss for e in entire]


def test_patience_survives_a_restart_where_no_best_is_kept(overfit, world: World) -> None:
    """Nobody keeps the checkpoint of the best step then."""
    patient = {"earlyStopping": {"patience": 4}, "keepBest": None, "checkpoint": {"everySteps": 6, "keep": 1}}
    whole = overfit(attempt=1, **patient)
    steps = run(whole, world).steps
    assert 36 < steps < 60
    remove_folder(whole.volume.root / "attempts" / "train-1")
    with pytest.raises(StageError, match="Interrupted"):
        run(overfit(attempt=2, **patient), world, StopAfter(37))
    assert run(overfit(attempt=3, **patient), world).steps == steps


def test_a_best_checkpoint_that_is_damaged_is_not_taken_for_the_last(overfit, world: World) -> None:
    """The attempt fails, and the next one selects among what comes then."""
    with pytest.raises(StageError, match="Interrupted"):
        run(overfit(attempt=1), world, StopAfter(56))
    _, best, _ = list_checkpoints(overfit(attempt=1).volume.checkpoints_dir(StageName.TRAIN, 1))
    damaged = best / "rank-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(StageError, match=f"the checkpoint of step {step_of(best)}, which was the best"):
        run(overfit(attempt=2), world)
    assert not best.exists()
    numbers = run(overfit(attempt=3), world)
    assert numbers.best_step == 60


def test_a_best_checkpoint_that_cannot_be_read_for_a_while_is_not_deleted(
    overfit, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server that is away says nothing about what it holds."""
    with pytest.raises(StageError, match="Interrupted"):
        run(overfit(attempt=1), world, StopAfter(56))
    with monkeypatch.context() as patched:
        patched.setattr(resuming, "verify_files", fail_at_step_24)
        with pytest.raises(StageError, match="the checkpoint of step 24, which was the best"):
            run(overfit(attempt=2), world)
    assert run(overfit(attempt=3), world).best_step == 24


def fail_at_step_24(folder: Path, *arguments: Any) -> None:
    if folder.name == "step-00000024":
        raise DamagedCheckpointError(f"{folder} cannot be verified: [Errno 110] Connection timed out")
    verify_files(folder, *arguments)


def test_early_stopping_ends_training(overfit, world: World) -> None:
    config = overfit(earlyStopping={"patience": 2}, keepBest=None)
    numbers = run(config, world)
    assert numbers.stopped_early
    assert numbers.steps < 60
    assert numbers.steps == len(curve(config))
    assert numbers.best_step is None, "the last weights, where nobody asks for the best"
    losses = [entry.validation_loss for entry in curve(config) if entry.validation_loss is not None]
    assert min(losses) == losses[-3]
