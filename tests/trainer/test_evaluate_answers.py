"""Answers do not depend on batching, repeat exactly, and are those of plain decoding."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from llava_api.spec import Generation
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.questions import Question
from llava_trainer.data.samples import Turn
from llava_trainer.evaluation.models import load_answerer
from llava_trainer.model import answering
from llava_trainer.model.answering import Answerer, EncodedPrompt, Generated, encode_question, plan_batches
from tests.tiny.images import COLOURS, CORNERS, draw_tray
from tests.trainer.runs import make_random_base

NEW_TOKENS = 10


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_random_base(folder)
    return folder


@pytest.fixture(scope="module")
def processor(base: Path) -> Processor:
    return load_processor(base, "pad")


@pytest.fixture(scope="module")
def answerer(base: Path, processor: Processor) -> Iterator[Answerer]:
    with load_answerer(base, processor, "cpu", torch.float32) as ready:
        yield ready


@pytest.fixture(scope="module")
def prompts(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> list[EncodedPrompt]:
    """Twelve prompts of different lengths; every third is about no image."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = random.Random(5)
    encoded = []
    for number in range(12):
        name = None if number % 3 == 2 else f"{number}.png"
        if name:
            draw_tray(rng, rng.choice(list(COLOURS)), rng.choice(list(CORNERS))).save(folder / name)
        turns = (Turn(role="user", text=f"Question {number}? " + "Think. " * rng.randrange(8)),)
        question = Question(
            set="validation",
            place=number,
            sample=str(number),
            number=1,
            images=(name,) if name else (),
            turns=turns,
            image_turns=(0,) if name else (),
            references=("",),
        )
        encoded.append(encode_question(question, processor, ImageFolder(root=folder)))
    return encoded


def nothing(answered: int) -> None:
    """Progress that nobody asks for."""


def decode_by_hand(answerer: Answerer, prompt: EncodedPrompt) -> str:
    """Greedy decoding in its plainest form: one prompt, no padding, no cache, the likeliest token each time."""
    ids = list(prompt.ids)
    pixels = {} if prompt.load_pixels is None else {"pixel_values": prompt.load_pixels()}
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            logits = answerer.model(input_ids=torch.tensor([ids]), **pixels, use_cache=False).logits[0, -1]
            token = int(logits.argmax())
            if token == answerer.tokens.eos:
                break
            ids.append(token)
    return answerer.decode(ids[len(prompt.ids) :]).strip()


def test_answers_are_those_of_plain_decoding(answerer: Answerer, prompts: list[EncodedPrompt]) -> None:
    answers = answerer.answer_greedily(prompts, NEW_TOKENS, nothing)
    assert [answer.text for answer in answers] == [decode_by_hand(answerer, prompt) for prompt in prompts]
    assert len({answer.text for answer in answers}) == len(answers), "prompts with equal answers would hide a mix-up"


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_answers_do_not_depend_on_the_batch_size(
    answerer: Answerer, prompts: list[EncodedPrompt], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answerer.answer_greedily(prompts, NEW_TOKENS, nothing)
    monkeypatch.setattr(answering, "BATCH_ROWS", rows)
    counts: list[int] = []
    assert answerer.answer_greedily(prompts, NEW_TOKENS, counts.append) == expected
    assert max(counts) == rows
    assert sum(counts) == len(prompts)


def test_an_answer_ends_at_the_end_token(answerer: Answerer, prompts: list[EncodedPrompt]) -> None:
    """Each prompt's own third token is made the end token; what is left are the two before it."""
    whole = answerer.model.generate(
        **answerer._pad_left(prompts[:1]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )[0, len(prompts[0].ids) :].tolist()
    assert len(set(whole[:3])) == 3
    tokens = answering.Tokens(bos=answerer.tokens.bos, eos=whole[2], pad=answerer.tokens.pad)
    short = Answerer(model=answerer.model, tokens=tokens, decode=answerer.decode)
    assert short.answer_greedily(prompts[:1], NEW_TOKENS, nothing) == [
        Generated(text=answerer.decode(whole[:2]).strip(), is_cut=False)
    ]


def test_a_checkpoints_own_generation_settings_do_not_mix_in(
    base: Path, processor: Processor, answerer: Answerer, prompts: list[EncodedPrompt], tmp_path: Path
) -> None:
    for file in base.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 9.0, "no_repeat_ngram_size": 1}')
    with load_answerer(tmp_path, processor, "cpu", torch.float32) as other:
        answers = other.answer_greedily(prompts, NEW_TOKENS, nothing)
    assert answers == answerer.answer_greedily(prompts, NEW_TOKENS, nothing)


def test_sampled_answers_repeat_and_follow_the_seed(answerer: Answerer, prompts: list[EncodedPrompt]) -> None:
    def answer(**changes: float) -> str:
        told = Generation(temperature=5.0, max_new_tokens=NEW_TOKENS, seed=3).model_copy(update=changes)
        return answerer.answer_as_told(prompts[0], told).text

    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    first = answer()
    assert torch.equal(torch.random.get_rng_state(), state), "sampling must leave the global generator alone"
    torch.manual_seed(12)
    assert answer() == first
    assert answer(seed=4) != first
    assert answer(temperature=0.0) == answerer.answer_greedily(prompts[:1], NEW_TOKENS, nothing)[0].text
    assert answer(top_p=1e-6) == answer(temperature=0.0), "the smallest nucleus is the likeliest token"


def test_any_token_can_be_sampled_unless_top_p_limits_it(answerer: Answerer, prompts: list[EncodedPrompt]) -> None:
    """Where all tokens are nearly alike, not only the 50 likeliest come up, as transformers would have it."""
    logits = answerer.model(**answerer._pad_left(prompts[:1])).logits[0, -1]
    likeliest = set(logits.topk(50).indices.tolist())
    drawn = set()
    for seed in range(30):
        told = Generation(temperature=10.0, max_new_tokens=1, seed=seed)
        sampler = Answerer(model=answerer.model, tokens=answerer.tokens, decode=lambda ids: drawn.update(ids) or "")
        sampler.answer_as_told(prompts[0], told)
    assert drawn - likeliest


def test_beams_are_transformers_own(answerer: Answerer, prompts: list[EncodedPrompt]) -> None:
    told = Generation(temperature=0.0, num_beams=4, max_new_tokens=NEW_TOKENS)
    by_hand = answerer.model.generate(
        **answerer._pad_left(prompts[:1]), num_beams=4, do_sample=False, max_new_tokens=NEW_TOKENS,
        eos_token_id=answerer.tokens.eos, pad_token_id=answerer.tokens.pad,
    )[0, len(prompts[0].ids) :]  # fmt: skip
    assert answerer.answer_as_told(prompts[0], told).text == answerer.decode(by_hand.tolist()).strip()


def test_memory_is_given_back_when_the_context_is_left(base: Path, processor: Processor) -> None:
    with load_answerer(base, processor, "cpu", torch.float32) as ready:
        assert ready.model.device.type == "cpu"
    assert {parameter.device.type for parameter in ready.model.parameters()} == {"meta"}


@pytest.mark.parametrize("lengths", [[5], [700, 10, 10, 3000, 20], [600] * 100, [50_000, 10]])
def test_batches_hold_every_prompt_once_and_keep_to_the_limits(lengths: list[int]) -> None:
    batches = list(plan_batches(lengths, 512))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * (longest + 512) <= answering.BATCH_TOKENS
        assert len(batch) <= answering.BATCH_ROWS
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_the_model_is_loaded_by_plain_auto_classes(base: Path, answerer: Answerer) -> None:
    assert type(answerer.model) is type(AutoModelForImageTextToText.from_pretrained(base))
