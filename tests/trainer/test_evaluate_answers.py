"""Answers do not depend on batching, repeat exactly, and are those of plain decoding."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from llava_trainer.model.loading import load_tuned
from llava_trainer.model.quantization import count_parameter_bytes
from tests.tiny.images import COLOURS, CORNERS, draw_tray
from tests.trainer.runs import make_adapter, make_random_base

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


def inputs_of(answerer: Answerer, prompt: EncodedPrompt) -> dict[str, torch.Tensor]:
    batch = answerer.prepare([prompt])
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
    return inputs if batch.pixels is None else inputs | {"pixel_values": batch.pixels}


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
        **inputs_of(answerer, prompts[0]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
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
    logits = answerer.model(**inputs_of(answerer, prompts[0])).logits[0, -1]
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
        **inputs_of(answerer, prompts[0]), num_beams=4, do_sample=False, max_new_tokens=NEW_TOKENS,
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


# --- how answers end, and how near others were


def ids_of(answerer: Answerer, prompt: EncodedPrompt) -> list[int]:
    return answerer.model.generate(
        **inputs_of(answerer, prompt), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )[0, len(prompt.ids) :].tolist()


def test_an_answer_says_whether_it_was_cut_off(answerer: Answerer, prompts: list[EncodedPrompt]) -> None:
    """The third token of the first prompt's answer is made the end; the others have none, or end somewhere else."""
    whole = [ids_of(answerer, prompt) for prompt in prompts]
    end = whole[0][2]
    tokens = answering.Tokens(bos=answerer.tokens.bos, eos=end, pad=answerer.tokens.pad)
    other = Answerer(model=answerer.model, tokens=tokens, decode=answerer.decode)
    cut = [one.is_cut for one in other.answer_greedily(prompts, NEW_TOKENS, nothing)]
    assert cut == [end not in row for row in whole]
    assert (cut[0], any(cut)) == (False, True)
    assert not other.answer_batch(prompts[:1], 3)[0].is_cut, "it ends with the last token that it may have"
    assert other.answer_batch(prompts[:1], 2)[0].is_cut
    told = Generation(temperature=0.0, max_new_tokens=NEW_TOKENS)
    assert [other.answer_as_told(prompt, told).is_cut for prompt in prompts] == cut


def margins_by_hand(answerer: Answerer, prompt: EncodedPrompt, num_tokens: int) -> list[float]:
    ids, margins = list(prompt.ids), []
    pixels = {} if prompt.load_pixels is None else {"pixel_values": prompt.load_pixels()}
    with torch.inference_mode():
        for _ in range(num_tokens):
            logits = answerer.model(input_ids=torch.tensor([ids]), **pixels, use_cache=False).logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            margins.append(first - second)
            ids.append(int(logits.argmax()))
    return margins


def test_an_answer_says_whether_two_tokens_were_nearly_as_likely(
    answerer: Answerer, prompts: list[EncodedPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch, at any of its own tokens: what comes behind its end does not count."""
    by_hand = [margins_by_hand(answerer, prompt, NEW_TOKENS) for prompt in prompts]
    assert not any(one.is_close for one in answerer.answer_greedily(prompts, NEW_TOKENS, nothing))
    smallest = [min(margins) for margins in by_hand]
    limit = sorted(smallest)[len(smallest) // 2] + 1e-5
    monkeypatch.setattr(answering, "CLOSE", limit)
    close = [one.is_close for one in answerer.answer_greedily(prompts, NEW_TOKENS, nothing)]
    assert close == [margin <= limit for margin in smallest]
    assert 0 < sum(close) < len(close)
    # An answer that ends before its closest token.
    index, at = next(
        (index, margins.index(min(margins))) for index, margins in enumerate(by_hand) if margins.index(min(margins)) > 1
    )
    row = ids_of(answerer, prompts[index])
    end = next(position for position in range(at) if row[position] not in row[:position])
    tokens = answering.Tokens(bos=answerer.tokens.bos, eos=row[end], pad=answerer.tokens.pad)
    ended = Answerer(model=answerer.model, tokens=tokens, decode=answerer.decode)
    monkeypatch.setattr(answering, "CLOSE", min(by_hand[index][: end + 1]) - 1e-5)
    assert by_hand[index][at] <= answering.CLOSE
    assert not ended.answer_batch([prompts[index]], NEW_TOKENS)[0].is_close


def test_an_image_that_several_prompts_show_is_read_once_a_batch(
    answerer: Answerer, prompts: list[EncodedPrompt]
) -> None:
    read: list[int] = []

    def load(prompt: EncodedPrompt) -> torch.Tensor:
        read.append(1)
        assert prompt.load_pixels is not None
        return prompt.load_pixels()

    twice = [
        replace(prompt, load_pixels=lambda prompt=prompt: load(prompt)) if prompt.load_pixels else prompt
        for prompt in (prompts[0], prompts[1], prompts[2], prompts[0], prompts[0])
    ]
    answers = answerer.answer_batch(twice, NEW_TOKENS)
    assert len(read) == 2
    assert answers[0] == answers[3] == answers[4]
    assert answers[:3] == answerer.answer_batch(prompts[:3], NEW_TOKENS)


# --- loaded in fewer bits


BITS = {"none": 32, "8bit": 8, "4bit": 4}


def linear_bytes(model: torch.nn.Module) -> int:
    """Of the language model's linear layers, which are quantised."""
    return sum(
        module.weight.numel() * module.weight.element_size()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model" in name
    )


@pytest.mark.parametrize("load", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("with_adapter", [False, True], ids=["base", "base and adapter"])
def test_models_are_really_loaded_in_fewer_bits(
    base: Path, processor: Processor, answerer: Answerer, prompts: list[EncodedPrompt], tmp_path: Path, load: Any,
    with_adapter: bool,
) -> None:  # fmt: skip
    """By the bytes of their weights; tower, projector and head are as they are."""
    if with_adapter:
        make_adapter(base, tmp_path / "adapter")
    adapter_dir = tmp_path / "adapter" if with_adapter else None
    whole = linear_bytes(answerer.model)
    with load_answerer(base, processor, "cpu", torch.float32, adapter_dir=adapter_dir, load=load) as loaded:
        assert linear_bytes(loaded.model) == whole * BITS[load] // 32
        saved = count_parameter_bytes(answerer.model) - count_parameter_bytes(loaded.model)
        assert saved == whole - whole * BITS[load] // 32
        others = {
            name: parameter.dtype
            for name, parameter in loaded.model.named_parameters()
            if any(part in name for part in ("vision_tower", "multi_modal_projector", "lm_head"))
        }
        assert len(others) > 10
        assert set(others.values()) == {torch.float32}
        answers = loaded.answer_greedily(prompts, NEW_TOKENS, nothing)
    assert all(answer.text for answer in answers)
    plain = answerer.answer_greedily(prompts, NEW_TOKENS, nothing)
    assert (answers == plain) is (load == "none" and not with_adapter)
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}


def test_an_adapter_is_merged_before_anything_is_quantised(
    base: Path, processor: Processor, prompts: list[EncodedPrompt], tmp_path: Path
) -> None:
    """So base and tuned model are loaded alike: the merged one from its files gives the same answers."""
    make_adapter(base, tmp_path / "adapter")
    merged = load_tuned(base, tmp_path / "adapter", torch.float32, "cpu").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    answers = []
    for folder, adapter_dir in ((base, tmp_path / "adapter"), (tmp_path / "merged", None)):
        with load_answerer(folder, processor, "cpu", torch.float32, adapter_dir=adapter_dir, load="4bit") as loaded:
            answers.append(loaded.answer_greedily(prompts, NEW_TOKENS, nothing))
    assert answers[0] == answers[1]
