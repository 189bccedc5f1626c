"""Token ids and masks are LLaVA's own: 260 varied conversations against an oracle on the sentencepiece package.

For a checkpoint of the original code with either value of ``legacy``, converted and saved; in the v1 layout and in the
plain one of phase 1.
"""

import random
from pathlib import Path

import pytest

from llava_trainer.data.encode import IGNORED, encode, encode_prompt
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.data.template import TemplateError
from llava_trainer.importing import ModelParts, import_model
from tests.trainer import llava_oracle as oracle
from tests.trainer.originals import (
    build,
    llava_settings,
    sentencepiece_model,
    write_settings,
    write_tokenizer,
    write_weights,
)
from tests.trainer.test_template import make_sample

LONG = 100_000
NUM_CONVERSATIONS = 260
_TEXTS = (
    "what is the total", "Which shop sold it, and when?", "9", "1,234.50 €", "25/12/2018 at 14:05", "yes", "No.",
    "Größe – naïve?", "漢字かな交じり文", "שלום עולם", "مرحبا", "ไทย", "🙂👩‍👩‍👧‍👦🇩🇪",
    "e\u0301 \u00a0x\u200by", "two  spaces   three", "a\ttab", "two\nlines", "a blank line\n\nbetween",
    "A chat between", "don't CamelCase snake_case", "[1, 2]{a: 'b'} <b>bold</b> &amp; http://a.b/?c=d",
    "▁ marks ▁the▁ space", "aaaaaaaaaa ---- ____ 00000", "</ s> < image>", "the whole is " + "very " * 40 + "long",
)  # fmt: skip
_TEMPLATE_WORDS = (
    "ASSISTANT: as I said", "USER: hello ASSISTANT: hi", "he said ASSISTANT:", "USER:", "ASSISTANT:", "x USER: y",
)  # fmt: skip

Spoken = list[tuple[str, str]]


def draw_conversation(rng: random.Random) -> Spoken:
    """One conversation in LLaVA's own form: one to five rounds, images anywhere in a question, or none."""
    turns: Spoken = []
    pictured = rng.random() < 0.75
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        question, answer = _draw_text(rng), _draw_text(rng)
        answer = "" if rng.random() < 0.05 else answer
        question = "" if rng.random() < 0.03 else question
        if pictured and rng.random() < 0.5:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                words = question.split(" ")
                words.insert(rng.randint(0, len(words)), "<image>")
                question = " ".join(words)
        turns += [("human", question), ("gpt", answer)]
    return turns


def _draw_text(rng: random.Random) -> str:
    pools = (_TEMPLATE_WORDS if rng.random() < 0.07 else _TEXTS for _ in range(rng.choice((1, 1, 2))))
    return " ".join(rng.choice(pool) for pool in pools)


def as_sample(turns: Spoken) -> Sample:
    """What the reader of LLaVA's JSON makes of it."""
    shown = tuple(index for index, (_, value) in enumerate(turns) for _ in range(value.count("<image>")))
    said = tuple(
        Turn(role="user" if speaker == "human" else "assistant", text=value.replace("<image>", "").strip())
        for speaker, value in turns
    )
    images = tuple(f"{number}.png" for number in range(len(shown)))
    return Sample(id="s", images=images, turns=said, source=Source(file="e", index=0), image_turns=shown)


def conversations() -> list[Spoken]:
    rng = random.Random(20)
    return [draw_conversation(rng) for _ in range(NUM_CONVERSATIONS)]


@pytest.fixture(scope="module", params=[True, False, None], ids=["legacy", "not legacy", "legacy not told"])
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Processor, oracle.SlowLlamaTokenizer]:
    """A converted checkpoint, and the tokenizer that LLaVA itself would use for the original."""
    root = tmp_path_factory.mktemp("converted")
    original = build()
    source = write_settings(root / "original", llava_settings(original))
    write_tokenizer(source, **({} if request.param is None else {"legacy": request.param}))
    write_weights(source, original.weights())
    imported = import_model(ModelParts(source=source), root / "hub")
    legacy = request.param is not False
    return load_processor(imported.model_dir, "pad"), oracle.SlowLlamaTokenizer(sentencepiece_model(), legacy=legacy)


def expand(ids: list[int], labels: list[int], processor: Processor) -> tuple[list[int], list[int]]:
    counts = [processor.tokens_per_image if token == oracle.IMAGE else 1 for token in ids]
    named = [processor.image_token_id if token == oracle.IMAGE else token for token in ids]
    pairs = zip(named, labels, counts, strict=True)
    spread = [(token, label) for token, label, count in pairs for _ in range(count)]
    return [token for token, _ in spread], [label for _, label in spread]


def test_ids_and_masks_are_those_of_llava(converted: tuple[Processor, oracle.SlowLlamaTokenizer]):
    processor, tokenizer = converted
    given_up = supervised = 0
    for turns in conversations():
        expected = oracle.encode_v1(turns, tokenizer)
        ids, labels = expand(expected.ids, expected.labels, processor)
        encoded = encode(as_sample(turns), processor, LONG)
        assert list(encoded.input_ids) == ids, turns
        assert list(encoded.labels) == labels, turns
        given_up += expected.llava_gives_up
        supervised += encoded.num_supervised
    # LLaVA's own counting must agree with ours in most of them, or the oracle would only be ours.
    assert 0 < given_up < NUM_CONVERSATIONS * 0.4
    assert supervised > 5_000


def test_where_nothing_is_said_nothing_is_learned(converted: tuple[Processor, oracle.SlowLlamaTokenizer]):
    processor, tokenizer = converted
    turns = [("human", "<image>What?"), ("gpt", "")]
    encoded = encode(as_sample(turns), processor, LONG)
    assert encoded.num_supervised == 0
    assert list(encoded.input_ids) == expand(*2 * [oracle.encode_v1(turns, tokenizer).ids], processor)[0]


def test_prompts_are_what_training_has_before_each_answer(converted: tuple[Processor, oracle.SlowLlamaTokenizer]):
    processor, _ = converted
    compared = 0
    for turns in conversations()[:60]:
        sample = as_sample(turns)
        whole = list(encode(sample, processor, LONG).input_ids)
        for before, question, _ in sample.pairs():
            shown = [index for index in sample.image_turns if index <= len(before)]
            prompt = encode_prompt((*before, question), shown, processor)
            assert whole[: len(prompt)] == prompt, turns
            compared += 1
    assert compared > 60


@pytest.mark.parametrize("caption", [text for text in _TEXTS if not text.startswith("▁")])
def test_the_plain_layout_of_phase_1(caption: str, converted: tuple[Processor, oracle.SlowLlamaTokenizer]):
    processor, tokenizer = converted
    expected = oracle.encode_plain(caption, tokenizer)
    encoded = encode(make_sample("Describe this picture.", caption), processor, LONG, template="plain")
    assert (list(encoded.input_ids), list(encoded.labels)) == expand(expected.ids, expected.labels, processor)
    masked = 1 + processor.tokens_per_image
    assert set(encoded.labels[:masked]) == {IGNORED}
    assert IGNORED not in encoded.labels[masked:]


@pytest.mark.parametrize(
    ("texts", "image_turns"), [(("Q", "A", "Q", "A"), (0,)), (("Q", "A"), ()), (("Q", "A"), (0, 0))]
)
def test_phase_1_learns_from_one_image_with_one_caption(
    texts: tuple[str, ...], image_turns: tuple[int, ...], toy_processor: Processor
):
    with pytest.raises(TemplateError, match="one picture with one caption"):
        encode(make_sample(*texts, image_turns=image_turns), toy_processor, LONG, template="plain")


def test_the_set_is_varied():
    drawn = conversations()
    assert len({repr(turns) for turns in drawn}) > 250
    counts = [sum(value.count("<image>") for _, value in turns) for turns in drawn]
    assert min(counts.count(0), sum(count > 1 for count in counts)) > 50
    answers = [value for turns in drawn for speaker, value in turns if speaker == "gpt"]
    assert min(answers.count(""), sum("ASSISTANT:" in a for a in answers), sum("USER:" in a for a in answers)) >= 10
    assert sum(len(turns) > 2 for turns in drawn) > 100
    inside = [value for turns in drawn for _, value in turns if "<image>" in value.strip()[1:-1]]
    assert len(inside) > 30


def test_the_two_kinds_differ_where_they_should(tmp_path: Path):
    """After ``</s>`` a text begins with a space only in the legacy way; after an image it does in both."""
    ids = {legacy: oracle.SlowLlamaTokenizer(sentencepiece_model(), legacy=legacy) for legacy in (True, False)}
    text = "what</s>what"
    assert len({tuple(tokenizer(text)) for tokenizer in ids.values()}) == 2
    assert len({tuple(oracle.image_token("<image>\nwhat", tokenizer)) for tokenizer in ids.values()}) == 1
