"""Token ids and labels, position by position, with two kinds of Llama tokenizers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer

from llava_trainer.data.encode import IGNORED, ImageCutError, encode, encode_prompt
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.template import SYSTEM, render
from llava_trainer.errors import StageError
from tests.trainer.test_template import make_sample

LONG = 4096
SEEN = -1
SAMPLES = {
    "one turn": make_sample("What is the total?", "9.00"),
    "several turns": make_sample("What is the total?", "9.00", "And the date?", "25/12/2018", "Who?", "Me."),
    "unicode": make_sample("Größe – naïve?", "漢字 🙂 e\u0301 ß", "Noch eine?", "Ünïcödé\nzwei Zeilen"),
    "the template's own words": make_sample("USER: what?", "ASSISTANT: USER: this", "ASSISTANT:", "A chat. USER:"),
    "without picture": make_sample("Hello.", "Hi there.", image_turns=()),
    "picture in a later turn": make_sample("Hello.", "Hi.", "What is this?", "A cat.", image_turns=(2,)),
    "several pictures": make_sample("Which?", "This.", "And of these?", "That.", image_turns=(0, 2, 2)),
    "one character": make_sample("?", "!"),
}


@pytest.fixture(scope="module")
def newer_processing(toy_processor: Processor) -> Processor:
    """A byte-fallback BPE as transformers 5 makes it from a tokenizer.model (``legacy=False``): prefix only once."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>", "<image>")]
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=[*special, *(f"<0x{value:02X}>" for value in range(256))], show_progress=False
    )
    backend.train_from_iterator(
        [SYSTEM, "USER: what is the total ASSISTANT: nine of them: 9.00, Hi there."] * 20, trainer
    )
    # Like SentencePiece: trained on words, so that no piece reaches into the next word, but applied to whole texts.
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer = LlamaTokenizer(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    # What load_processor finds out: a space has to stand behind each image.
    return replace(
        toy_processor, tokenizer=tokenizer, image_token_id=tokenizer.convert_tokens_to_ids("<image>"), gap=" "
    )


@pytest.fixture(params=["hub", "newer"])
def processor(request: pytest.FixtureRequest, toy_processor: Processor) -> Processor:
    return toy_processor if request.param == "hub" else request.getfixturevalue("newer_processing")


def runs_of_learned(encoded, processor: Processor) -> list[str]:
    """Text of each unbroken run of learned positions."""
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if label == IGNORED:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [processor.tokenizer.decode(run).strip() for run in runs if run]


@pytest.mark.parametrize("name", SAMPLES)
def test_exactly_the_answers_and_their_ends_are_learned(name: str, processor: Processor):
    sample = SAMPLES[name]
    encoded = encode(sample, processor, LONG)
    answers = [f"{answer.text}</s>" for _, _, answer in sample.pairs()]
    assert runs_of_learned(encoded, processor) == answers
    assert encoded.num_supervised == sum(label != IGNORED for label in encoded.labels) > 0
    assert not encoded.truncated


@pytest.mark.parametrize("name", SAMPLES)
def test_an_image_becomes_its_tokens_and_the_text_stays_itself(name: str, processor: Processor):
    sample = SAMPLES[name]
    ids = list(encode(sample, processor, LONG).input_ids)
    assert ids.count(processor.image_token_id) == len(sample.images) * processor.tokens_per_image
    assert ids[0] == processor.bos_token_id
    assert ids.count(processor.bos_token_id) == 1
    if sample.images:
        for _ in sample.images:
            first = ids.index(processor.image_token_id)
            assert set(ids[first : first + processor.tokens_per_image]) == {processor.image_token_id}
            ids[first : first + processor.tokens_per_image] = [SEEN]
        ids = [processor.image_token_id if token == SEEN else token for token in ids]
    text = render(sample, gap=processor.gap).text
    assert ids[1:] == processor.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", SAMPLES)
def test_a_prompt_is_the_training_ids_before_each_answer(name: str, toy_processor: Processor):
    sample = SAMPLES[name]
    encoded = encode(sample, toy_processor, LONG)
    starts = [
        position
        for position, label in enumerate(encoded.labels)
        if label != IGNORED and encoded.labels[position - 1] == IGNORED
    ]
    for (history, question, _), start in zip(sample.pairs(), starts, strict=True):
        shown = [index for index in sample.image_turns if index <= len(history)]
        prompt = encode_prompt((*history, question), shown, toy_processor)
        assert prompt == list(encoded.input_ids[:start])


def test_layout_token_by_token(toy_processor: Processor):
    encoded = encode(make_sample("What?", "9é", "Ok?", "Hi"), toy_processor, LONG)
    tokens = toy_processor.tokenizer.convert_ids_to_tokens(list(encoded.input_ids))
    begin = tokens.index("<image>") - 2
    expected = [
        ("▁USER:", False), ("▁", False), *[("<image>", False)] * 16, ("▁", False), ("<0x0A>", False),
        *[(token, False) for token in pieces(toy_processor, "What?")], ("▁ASSISTANT:", False),
        ("▁", True), ("9", True), ("<0xC3>", True), ("<0xA9>", True), ("</s>", True), ("▁USER:", False),
        *[(token, False) for token in pieces(toy_processor, " Ok?")], ("▁ASSISTANT:", False),
        *[(token, True) for token in pieces(toy_processor, " Hi")], ("</s>", True),
    ]  # fmt: skip
    found = [(token, label != IGNORED) for token, label in zip(tokens, encoded.labels, strict=True)]
    assert found[begin:] == expected
    assert not any(learned for _, learned in found[:begin])


def pieces(processor: Processor, text: str) -> list[str]:
    """Tokens of ``text`` in the middle of a word sequence, without the ▁ that a beginning gets."""
    backend = processor.tokenizer.backend_tokenizer
    tokens = backend.encode(f"x{text}" if text.startswith(" ") else f"\n{text}", add_special_tokens=False).tokens
    return tokens[2:]


@pytest.mark.parametrize("name", SAMPLES)
def test_ids_are_those_of_llava_which_tokenises_chunk_by_chunk(name: str, processor: Processor):
    """Reference: tokenizer_image_token of LLaVA's mm_utils: each chunk between images apart, with a ▁ of its own."""
    sample = SAMPLES[name]
    tokenizer = processor.tokenizer
    chunks = [tokenizer(chunk, add_special_tokens=False).input_ids for chunk in render(sample).text.split("<image>")]
    reference = [tokenizer.bos_token_id, *chunks[0]]
    for chunk in chunks[1:]:
        reference += [processor.image_token_id] * processor.tokens_per_image + chunk
    assert list(encode(sample, processor, LONG).input_ids) == reference


def test_a_tokenizer_that_tokenises_what_follows_an_image_otherwise_is_refused(toy_model_dir: Path, tmp_path: Path):
    """One that eats the white space after ``<image>``: no gap brings back what LLaVA has there."""
    folder = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] == "<image>"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(StageError, match=r"tokenizer\.json: a text after <image> has other ids than by itself"):
        load_processor(folder, "pad")


def test_what_is_beyond_the_limit_is_cut_off(processor: Processor):
    sample = SAMPLES["several turns"]
    whole = encode(sample, processor, LONG)
    cut = encode(sample, processor, whole.num_tokens - 3)
    assert cut.truncated
    assert cut.input_ids == whole.input_ids[:-3]
    assert cut.labels == whole.labels[:-3]
    assert cut.full_length == whole.num_tokens
    assert not encode(sample, processor, whole.num_tokens).truncated


@pytest.mark.parametrize("name", SAMPLES)
def test_the_characters_that_are_left_are_those_of_the_tokens_that_are_left(name: str, processor: Processor):
    text = render(SAMPLES[name], gap=processor.gap).text
    whole = encode(SAMPLES[name], processor, LONG)
    assert whole.num_characters == len(text)
    without_end = encode(SAMPLES[name], processor, whole.num_tokens - 1)
    assert text[without_end.num_characters :] == "</s>"


def test_the_first_answer_s_length_is_the_shortest_limit_that_keeps_it(processor: Processor):
    sample = SAMPLES["several turns"]
    length = encode(sample, processor, LONG).first_answer_length
    assert runs_of_learned(encode(sample, processor, length), processor) == ["9.00</s>"]
    assert runs_of_learned(encode(sample, processor, length - 1), processor) == ["9.00"]


@pytest.mark.parametrize("name", ["one turn", "picture in a later turn", "several pictures"])
def test_an_image_is_never_cut(name: str, processor: Processor):
    sample = SAMPLES[name]
    ids = encode(sample, processor, LONG).input_ids
    end = len(ids) - ids[::-1].index(processor.image_token_id)
    encode(sample, processor, end)
    with pytest.raises(ImageCutError) as caught:
        encode(sample, processor, end - 1)
    encode(sample, processor, caught.value.needed)
