"""What vLLM answers is what evaluation has answered, token for token in fp32.

A real server, through its OpenAI-compatible API: images as data: URLs, and the chat template of what is exported. One
server has a merged model, and adapters of the language model that were trained upon it.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.data.image_folder import training_images
from llava_trainer.data.processor import PROCESSOR_FILES, TOKENIZER_CONFIG, load_processor
from llava_trainer.data.questions import Question
from llava_trainer.data.samples import Sample, Source, Turn, write_samples
from llava_trainer.evaluation.dealing import list_questions
from llava_trainer.evaluation.models import load_answerer
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.model.answering import Answerer, Generated, encode_question, make_answerer
from llava_trainer.model.loading import load_tuned
from llava_trainer.publishing.companions import describe_tokenizer
from llava_trainer.reporting import Reporter
from llava_trainer.stages import merge
from llava_trainer.training.train import train
from tests.demo.inputs import cached_base
from tests.trainer.attempts import begin
from tests.trainer.exports import draw_image
from tests.trainer.servers import vllm
from tests.trainer.trainings import make_dataset, make_training

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

NEW_TOKENS = 16
NUM_HELD_OUT = 8
TRAINING = {
    "lora": {"rank": 16, "alpha": 32, "dropout": 0.0},
    "learningRate": 3.0e-3,
    "projectorLearningRate": 1.0e-3,
    "batch": {"perDevice": 8, "global": 16},
    "maxLength": 512,
}
ADAPTERS = {
    "adapter": {},
    "rank-stabilised": {"lora": {"rank": 16, "alpha": 8, "dropout": 0.0, "rsLora": True}},
}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server with everything that was trained, and where that lies."""

    client: httpx.Client
    whole: RunConfig
    """The run whose merged model is served."""
    adapters: dict[str, RunConfig]
    """Runs upon that merged model, by the name under which their adapters are served."""


def say(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn(role="assistant" if number % 2 else "user", text=text) for number, text in enumerate(texts))


def other_samples(images: Path) -> list[Sample]:
    """What trays alone would not show: later turns, several images, none, padding, a system text, other letters."""
    wide, tall = (
        draw_image(images / f"{name}.png", seed, size).name
        for name, seed, size in (("wide", 1, (90, 31)), ("tall", 2, (40, 77)))
    )
    source = Source(file="export.json", index=0)
    question, code = "What is the tray code?", "LIMA-3"
    several = Sample(
        id="several", images=(wide, tall, "tray-0000.png"), image_turns=(0, 0, 2), source=source,
        turns=say(question, code, "In which corner is the block?", "top left"),
    )  # fmt: skip
    return [
        Sample(id="wide", images=(wide,), image_turns=(0,), source=source, turns=say("two\nlines", "a  b")),
        replace(several, id="tall", images=(tall,), image_turns=(0,)),
        several,
        Sample(id="text", images=(), source=source, turns=say("Repeat tilo.", "tilo", "Repeat naïve 漢字.", "naïve")),
        replace(several, id="system", system="Answer in one word."),
    ]


def run_training(
    root: Path, model_dir: Path, data: Path, samples: tuple[list[Sample], list[Sample]], world: World, **training: Any
) -> RunConfig:
    """Train upon a model; returns the configuration of the merge stage."""
    root.mkdir()
    (root / "dataset").symlink_to(data)
    changes = {"training": TRAINING | training, "merge": {"dtype": "float32"}, "evaluation": {"trainingSamples": 4}}
    config = make_training(root, model_dir, samples[1], **changes)
    write_samples(config.volume.validation_file, samples[0])
    with Reporter(config) as reporter:
        train(config, world, reporter, StopRequest())
    return begin(config.model_copy(update={"run": config.run.model_copy(update={"stage": StageName.MERGE})}))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, world: World) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("vllm")
    trays = make_dataset(root / "dataset", images_per_scene=4)
    samples = [*trays[:NUM_HELD_OUT], *other_samples(root / "dataset" / "images")], trays[NUM_HELD_OUT:]
    whole = run_training(root / "whole", cached_base(), root / "dataset", samples, world, epochs=6)
    merge.run(whole, Reporter(whole))
    merged = whole.volume.merged_dir
    options = ("--limit-mm-per-prompt", '{"image": 3}', "--enable-lora", "--max-lora-rank", "16")
    with vllm.serve(merged, root, *options) as started:
        # It takes longer than this to start, most of the time on one core.
        adapters = {
            name: run_training(root / name, merged, root / "dataset", samples, world, projector="frozen", **training)
            for name, training in ADAPTERS.items()
        }
        client = started()
        for name, config in adapters.items():
            published = publish(config.volume.adapter_dir, merged, root / name / "published")
            assert vllm.load_adapter(client, name, published).is_success
        yield Served(client=client, whole=whole, adapters=adapters)


def publish(adapter: Path, merged: Path, folder: Path) -> Path:
    """The adapter as it is published: with tokenizer and processor, which the server has to leave alone."""
    shutil.copytree(adapter, folder)
    for name in PROCESSOR_FILES:
        if (merged / name).exists():
            shutil.copyfile(merged / name, folder / name)
    (folder / TOKENIZER_CONFIG).write_text(describe_tokenizer(merged))
    return folder


def as_messages(question: Question, config: RunConfig) -> list[dict[str, Any]]:
    """A question as a client of the server would put it."""
    folder = training_images(config)
    messages: list[dict[str, Any]] = [{"role": "system", "content": question.system}] if question.system else []
    for index, turn in enumerate(question.turns):
        shown = [path for path, at in zip(question.images, question.image_turns, strict=True) if at == index]
        content = [*(vllm.show(folder.find(path)) for path in shown), {"type": "text", "text": turn.text}]
        messages.append({"role": turn.role, "content": content if turn.role == "user" else turn.text})
    return messages


def answer_here(answerer: Answerer, config: RunConfig) -> tuple[list[list[int]], list[Generated]]:
    """Ids of each question's prompt, and evaluation's answers; their texts are ids of tokens."""
    processor = load_processor(config.model_dir, config.dataset.image_aspect_ratio)
    prompts = [encode_question(question, processor, training_images(config)) for question in list_questions(config)]
    by_ids = replace(answerer, decode=lambda ids: " ".join(map(str, ids)))
    answers = by_ids.answer_greedily(prompts, NEW_TOKENS, lambda answered: None)
    return [list(prompt.ids) for prompt in prompts], answers


def answer_there(client: httpx.Client, config: RunConfig, model: str) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of each question's prompt and answer at the server, without the token that ends the answer."""
    end = load_processor(config.model_dir, "pad").eos_token_id
    prompts, answers = [], []
    for question in list_questions(config):
        found = vllm.ask(client, as_messages(question, config), model=model, max_tokens=NEW_TOKENS)
        prompts.append(found["prompt_token_ids"])
        ids = found["choices"][0]["token_ids"]
        answers.append(ids[:-1] if ids[-1] == end else ids)
    return prompts, answers


def check_equal(here: Sequence[Generated], there: Sequence[list[int]]) -> None:
    """All but where two tokens are as likely as each other, which sums in another order decide."""
    compared = [(one.text, " ".join(map(str, ids))) for one, ids in zip(here, there, strict=True) if not one.is_close]
    assert [ours for ours, _ in compared] == [theirs for _, theirs in compared]
    assert len(compared) >= len(here) - 2
    assert len({ours for ours, _ in compared}) > len(compared) // 2, "questions with equal answers would hide a mix-up"


def test_a_merged_model_answers_as_in_evaluation(served: Served) -> None:
    config = served.whole
    processor = load_processor(config.model_dir, config.dataset.image_aspect_ratio)
    with load_answerer(config.volume.merged_dir, processor, "cpu", torch.float32) as answerer:
        prompts, here = answer_here(answerer, config)
    prompts_there, there = answer_there(served.client, config, "tuned")
    assert prompts_there == prompts
    check_equal(here, there)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_without_projector_answers_as_peft_has_it(served: Served, name: str) -> None:
    config = served.adapters[name]
    processor = load_processor(config.model_dir, config.dataset.image_aspect_ratio)
    tuned = load_tuned(config.model_dir, config.volume.adapter_dir, torch.float32, "cpu")
    prompts, here = answer_here(make_answerer(tuned, processor), config)
    prompts_there, there = answer_there(served.client, config, name)
    assert prompts_there == prompts
    check_equal(here, there)
    _, without = answer_there(served.client, config, "tuned")
    assert sum(ids != plain for ids, plain in zip(there, without, strict=True)) >= 3, "dropped in silence"


def test_an_adapter_with_a_projector_is_refused(served: Served) -> None:
    """And so is served merged; should a server learn to take it, docs/serving.md has to say so."""
    refusal = vllm.load_adapter(served.client, "with-projector", served.whole.volume.adapter_dir)
    assert refusal.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    assert "modules_to_save" in refusal.text
    assert "multi_modal_projector" in refusal.text
