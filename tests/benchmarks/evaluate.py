"""``make bench-evaluate``: how fast evaluation answers, beside generating one answer after the other.

The demo's set: every question that it has annotated, answered by its pre-trained base of a million parameters. Plain is
what one writes first: ``model.generate`` with one prompt at a time. Both read the images, and take turns, so that
whatever else the machine does holds both up alike; the answers have to be the same.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import GenerationConfig

from llava_api.spec import Generation
from llava_trainer.data.dataset import prepare_dataset
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.processor import load_processor
from llava_trainer.data.questions import Question, ask_samples
from llava_trainer.data.request import training_request
from llava_trainer.data.samples import read_samples, write_lines
from llava_trainer.evaluation.answering_shard import Progress, Prompt, ShardPlan, answer_shard
from llava_trainer.evaluation.asking import list_askings
from llava_trainer.evaluation.models import load_answerer
from llava_trainer.evaluation.shard_file import ShardWriter, read_whole_shard
from llava_trainer.model.answering import Answerer, KeptPixels, encode_question
from tests.demo.inputs import cached_base
from tests.tiny.base import make_untrained_base
from tests.tiny.export import make_export
from tests.trainer.exports import prepare_config

MAX_NEW_TOKENS = 16
"""As the demo's manifest has it."""
ROUNDS = 3


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=320, help="questions at most (default: %(default)s)")
    parser.add_argument("--untrained", action="store_true", help="a base that ends no answer: all are cut off")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as folder:
        compare(Path(folder), chosen.questions, is_trained=not chosen.untrained)


def compare(root: Path, num_questions: int, *, is_trained: bool) -> float:
    """Print answers a second of both sides, and their ratio, which is returned."""
    base = cached_base() if is_trained else root / "base"
    if not is_trained:
        make_untrained_base(base)
    make_export(root / "dataset", format="llava")
    processor = load_processor(base, "pad")
    questions = list_questions(root, base)[:num_questions]
    images = ImageFolder(root=root / "dataset", name="images")
    askings = [asking for one in questions for asking in list_askings(one)]
    seconds, busy = {"evaluation": 0.0, "one by one": 0.0}, {"evaluation": 0.0, "one by one": 0.0}
    told: dict[str, dict[tuple[str, str], str]] = {}
    with load_answerer(base, processor, "cpu", torch.float32) as answerer:
        sides = {"evaluation": answer_as_evaluation, "one by one": answer_one_by_one}
        for number in range(-1, ROUNDS):
            for name in sorted(sides, reverse=bool(number % 2)):
                # Anew each time, with no image that has been read.
                kept = KeptPixels() if name == "evaluation" else None
                prompts = [
                    Prompt(asking=one, encoded=encode_question(one.put, processor, images, kept))
                    for one in (askings if number >= 0 else askings[:8])
                ]
                begin, begin_busy = time.perf_counter(), time.process_time()
                told[name] = sides[name](answerer, prompts, root)
                if number >= 0:
                    seconds[name] += time.perf_counter() - begin
                    busy[name] += time.process_time() - begin_busy
    changed = sum(told["evaluation"][key] != text for key, text in told["one by one"].items())
    print(f"{len(askings):,} prompts for {len(questions):,} questions, {ROUNDS} rounds, {changed} answers differ")
    for name, taken in seconds.items():
        each = f"{busy[name] / ROUNDS / len(askings) * 1000:.1f} ms of a core each"
        print(f"{name:12} {ROUNDS * len(askings) / taken:8.1f} answers a second, {each}")
    ratio = seconds["one by one"] / seconds["evaluation"]
    print(f"ratio        {ratio:8.2f}")
    return ratio


def list_questions(root: Path, base: Path) -> list[Question]:
    """Every question of the demo's data, as prepare hands it on."""
    samples = root / "samples.jsonl"
    request = training_request(prepare_config(root, base))
    with prepare_dataset(request, load_processor(base, "pad"), root / "spool") as dataset:
        write_lines(samples, dataset.lines(dataset.held_out >= 0))
    return list(ask_samples(read_samples(samples), "validation"))


def answer_as_evaluation(answerer: Answerer, prompts: Sequence[Prompt], root: Path) -> dict[tuple[str, str], str]:
    """As a pod of the stage does, its rows written and synced."""
    plan = ShardPlan(
        prompts=prompts, models=("base",), generation=Generation(max_new_tokens=MAX_NEW_TOKENS), is_repeated=False
    )
    with ShardWriter(root / "rows.jsonl", "inputs") as writer:
        answer_shard(plan, {}, writer, lambda _: nullcontext(answerer), Progress(tell=lambda _: None))
    rows = read_whole_shard(root, root / "rows.jsonl").rows
    return {(row.question_id, row.variant): row.answer for row in rows}


@torch.no_grad()
def answer_one_by_one(answerer: Answerer, prompts: Sequence[Prompt], root: Path) -> dict[tuple[str, str], str]:
    """As one writes it first."""
    config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        eos_token_id=answerer.tokens.eos,
        pad_token_id=answerer.tokens.pad,
    )
    answers = {}
    for prompt in prompts:
        load, ids = prompt.encoded.load_pixels, torch.tensor([list(prompt.encoded.ids)])
        shown = {} if load is None else {"pixel_values": load()}
        row = answerer.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **shown, generation_config=config
        )[0, ids.shape[1] :]
        answers[prompt.asking.question.id, prompt.asking.variant] = answerer.decode(row.tolist()).strip()
    return answers


if __name__ == "__main__":
    main()
