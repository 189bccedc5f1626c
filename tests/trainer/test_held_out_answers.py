"""A few held-out questions, answered by the model under training: which, how, and that nothing comes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llava_api.run_config import RunConfig
from llava_api.spec import Training, ValidationAnswers
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.samples import Sample, Turn, write_samples
from llava_trainer.evaluation.course import find_asked, find_hardest
from llava_trainer.files import remove_folder, sha256_file
from llava_trainer.gang.stopping import AskedToStopError, StopAgreement, StopRequest
from llava_trainer.gang.watchdog import Doing
from llava_trainer.gang.world import World
from llava_trainer.model.answering import count_prompt_tokens, encode_question, make_answerer
from llava_trainer.model.loading import load_tuned
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import CurvePoint, read_curve
from llava_trainer.training.hardest import read_hardest
from llava_trainer.training.held_out_answers import HeldOutAnswers, draw_questions
from llava_trainer.training.model_under_training import build_model
from llava_trainer.training.phase import phase_of
from llava_trainer.training.train import train
from tests.trainer.attempts import begin
from tests.trainer.many import run_in_processes
from tests.trainer.trainings import make_dataset, make_training, text_only

NEW_TOKENS = 12
ANSWERS = {"questions": 3, "maxNewTokens": NEW_TOKENS}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_dataset(folder)


@pytest.fixture
def configure(tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]]):
    folder, samples = dataset
    (tmp_path / "dataset").symlink_to(folder)

    def make(*, attempt: int = 1, answers: dict[str, int] | None = ANSWERS, **training: Any) -> RunConfig:
        validation: dict[str, Any] = {"everySteps": 2, "samples": 4}
        if answers:
            validation["answers"] = answers
        own = {"validation": validation, "warmupRatio": 0.0, "epochs": 2, "learningRate": 2e-2} | training
        config = make_training(tmp_path, toy_model_dir, samples[8:24], attempt=attempt, training=own)
        write_samples(config.volume.validation_file, [*samples[:4], text_only(samples[4])])
        return config

    return make


def run(world: World, config: RunConfig) -> None:
    with Reporter(config) as reporter:
        train(config, world, reporter, StopRequest())


def curve(config: RunConfig) -> list[CurvePoint]:
    return read_curve(config.volume.history_file(config.run.stage, config.run.attempt))


def open_answers(world: World, config: RunConfig, beat: Any = lambda doing: None) -> HeldOutAnswers:
    """Of the untrained model, ready to answer."""
    phase = phase_of(config)
    settings = phase.training.validation and phase.training.validation.answers
    assert settings is not None
    model = build_model(config, phase, world)
    model.module.eval()
    return HeldOutAnswers(
        settings=settings, questions=find_asked(config), model=model, world=world,
        processor=load_processor(config.model_dir, "pad"), images=phase.images, beat=beat,
    )  # fmt: skip


def answer(world: World, config: RunConfig) -> tuple[str, ...] | None:
    return open_answers(world, config).answer(StopAgreement(StopRequest(), world))


# --- what is answered


def test_answers_are_those_that_the_adapter_gives_afterwards(configure, world: World, toy_processor: Processor) -> None:
    """In the curve, of the same questions each time, by the evaluation's own way of asking."""
    config = configure(epochs=8)
    run(world, config)
    points = [point for point in curve(config) if point.validation_answers is not None]
    validated = [point.step for point in curve(config) if point.validation_loss is not None]
    assert [point.step for point in points] == validated
    asked = find_asked(config)
    assert len(asked) == 3
    tuned = load_tuned(config.model_dir, config.volume.adapter_dir, torch.float32, "cpu").get_base_model()
    encoded = [encode_question(question, toy_processor, phase_of(config).images) for question in asked]
    told = make_answerer(tuned, toy_processor).answer_greedily(encoded, NEW_TOKENS, lambda _: None)
    assert points[-1].validation_answers == tuple(one.text for one in told)
    assert points[0].validation_answers != points[-1].validation_answers, "it has learned"


def test_training_is_the_same_with_and_without(configure, world: World) -> None:
    """Dropout, order, weights and what the model is set to."""
    more = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}, "gradientCheckpointing": True}
    seen = []
    for attempt, answers in ((1, ANSWERS), (2, None)):
        config = configure(attempt=attempt, answers=answers, **more)
        begin(config)
        run(world, config)
        weights = sha256_file(config.volume.adapter_dir / "adapter_model.safetensors")
        seen.append(([(e.loss, e.grad_norm, e.validation_loss) for e in curve(config)], weights))
        remove_folder(config.volume.attempt_dir(config.run.stage, attempt))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("stage", [0, 2])
def test_the_same_answers_on_two_processes(configure, world: World, stage: int) -> None:
    config = configure(zero={"stage": stage}, batch={"perDevice": 2, "global": 8})
    expected = answer(world, config)
    assert expected is not None
    assert run_in_processes(2, answer, config) == [expected, None]


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_with_other_methods(configure, world: World, method: str) -> None:
    told = answer(world, configure(method=method))
    assert told is not None
    assert len(told) == 3


def test_nothing_is_left_in_the_model(configure, world: World) -> None:
    answers = open_answers(world, configure())
    llava, text = answers.model.llava, answers.model.llava.config.text_config
    before = (llava.generation_config, text.use_cache, text._attn_implementation)
    random = torch.random.get_rng_state()
    answers.answer(StopAgreement(StopRequest(), world))
    assert (llava.generation_config, text.use_cache, text._attn_implementation) == before
    assert not text.use_cache
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in llava.parameters())
    assert not any(module.training for module in llava.modules()), "as validation has set it"


def test_keys_and_values_are_kept(configure, world: World) -> None:
    """Each token after the first costs one position, not the whole text again."""
    answers = open_answers(world, configure())
    lengths: list[int] = []
    answers.model.llava.model.language_model.register_forward_pre_hook(
        lambda _, __, named: lengths.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    answers.answer(StopAgreement(StopRequest(), world))
    assert lengths.count(1) == len(lengths) - 3 > 0


def test_each_token_beats_the_watchdog(configure, world: World) -> None:
    beats: list[Doing] = []
    answers = open_answers(world, configure(), beats.append)
    assert answers.answer(StopAgreement(StopRequest(), world)) is not None
    assert 2 * 3 < beats.count(Doing.COMPUTING) <= 3 * (NEW_TOKENS + 1)


def test_being_asked_to_stop_ends_it_between_questions(configure, world: World) -> None:
    class Asked(StopRequest):
        looks = 0

        @property
        def received_meanwhile(self) -> bool:
            self.looks += 1
            return self.looks > 1

    answers, asked = open_answers(world, configure()), Asked()
    with pytest.raises(AskedToStopError):
        answers.answer(StopAgreement(asked, world))
    assert asked.looks == 2
    assert not answers.model.llava.config.text_config.use_cache


def test_without_a_question_that_fits_nothing_is_answered(configure, world: World) -> None:
    answers = open_answers(world, configure())
    nothing = HeldOutAnswers(**{**vars(answers), "questions": ()})
    assert nothing.answer(StopAgreement(StopRequest(), world)) == ()


# --- which questions


def test_questions_are_drawn_once_for_all(
    tmp_path: Path, dataset: tuple[Path, list[Sample]], toy_processor: Processor
) -> None:
    samples = dataset[1]
    long = Sample(id="long", images=(), turns=(Turn(role="user", text="word " * 300), samples[0].turns[1]),
                  source=samples[0].source)  # fmt: skip
    write_samples(tmp_path / "held-out.jsonl", [*samples, *[long] * 5])
    with SampleFile(tmp_path / "held-out.jsonl") as file:

        def draw(number: int, seed: int = 1, max_length: int = 256) -> list[str]:
            settings = ValidationAnswers(questions=number, max_new_tokens=8)
            drawn = draw_questions(file, settings, toy_processor, seed=seed, max_length=max_length)
            assert all(count_prompt_tokens(one, toy_processor) <= max_length for one in drawn)
            return [one.sample for one in drawn]

        assert draw(8) == draw(8)
        assert draw(8)[:3] == draw(3)
        assert draw(8) != draw(8, seed=2)
        assert len(set(draw(8))) == 8
        assert not any("long" in draw(8, seed=seed) for seed in range(10))
        assert draw(8, max_length=10) == [], "none fits"


def test_who_asks_for_none_gets_none(configure) -> None:
    assert find_asked(configure(answers=None)) == ()
    assert find_asked(configure(validation=None)) == ()


@pytest.mark.parametrize(
    "answers", [{"questions": 0}, {"questions": 9}, {"maxNewTokens": 0}, {"maxNewTokens": 257}, {"seconds": 3}]
)
def test_bounds(answers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="validation"):
        Training.model_validate({"validation": {"everySteps": 2, "answers": answers}})


# --- the hardest, for the report


@pytest.mark.parametrize(("steps", "epochs"), [({"epochs": 2}, 2), ({"epochs": 1, "maxSteps": 5}, 3)], ids=str)
def test_the_hardest_samples_come_with_what_they_are(
    configure, world: World, caplog: pytest.LogCaptureFixture, steps: dict[str, int], epochs: int
) -> None:
    """Of 16 samples, in two steps an epoch."""
    config = configure(answers=None, validation=None, **steps)
    run(world, config)
    found = find_hardest(config)
    state = read_hardest(config.volume.hardest_file(config.run.stage, 1))
    assert found is not None
    assert state is not None
    assert state.last is not None
    assert (found.epoch, found.epochs, found.seen, found.num_samples) == (2, epochs, 16, 16)
    with SampleFile(config.volume.train_file) as samples:
        assert [one.sample for one in found.samples] == [samples[one.index] for one in state.last.hardest]
        assert [one.place for one in found.samples] == [
            f"train.jsonl line {one.index + 1}" for one in state.last.hardest
        ]
        write_samples(config.volume.train_file, [samples[0]])
    assert find_hardest(config) is None
    assert "they are of other samples than the run has" in caplog.text
    config.volume.hardest_file(config.run.stage, 1).unlink()
    assert find_hardest(config) is None
