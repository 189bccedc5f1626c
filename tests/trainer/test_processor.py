"""A checkpoint's tokenizer and image processor: loaded as LLaVA trains, exported so that servers do the same."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from llava_api.failures import Reason
from llava_trainer.data.encode import encode, encode_prompt
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.model_files import check_weights
from llava_trainer.data.processor import Processor, load_processor, save_processor
from llava_trainer.data.template import SYSTEM, chat_template, render
from llava_trainer.errors import StageError
from tests.trainer.exports import draw_image
from tests.trainer.test_template import make_sample

Edit = Callable[[Path], Any]


def edit_json(name: str, **changes: Any) -> Edit:
    """Set keys (``a__b`` is b inside a) of a JSON file of the checkpoint."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            part = content
            for parent in parents:
                part = part[parent]
            part[last] = value
        (folder / name).write_text(json.dumps(content))

    return edit


def overwrite(name: str, content: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def shorten(name: str) -> Edit:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def index_of(places: Any) -> Edit:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.fixture
def model_dir(toy_model_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(toy_model_dir, tmp_path / "model"))


def set_image_size(folder: Path, size_px: int) -> None:
    edit_json("config.json", vision_config__image_size=size_px)(folder)
    crop = {"height": size_px, "width": size_px}
    edit_json("processor_config.json", image_processor__crop_size=crop)(folder)


@pytest.mark.parametrize(("size_px", "strategy", "tokens"), [
    (336, "default", 576), (224, "default", 256), (224, "full", 257), (56, "default", 16),
])  # fmt: skip
def test_tokens_of_an_image_follow_from_the_tower(model_dir: Path, size_px: int, strategy: str, tokens: int):
    set_image_size(model_dir, size_px)
    edit_json("config.json", vision_feature_select_strategy=strategy)(model_dir)
    processor = load_processor(model_dir, "pad")
    assert processor.tokens_per_image == tokens
    assert pixel_values(Image.new("RGB", (30, 20)), processor).shape == (3, size_px, size_px)


def test_the_checkpoint_s_own_pad_token_is_kept(toy_processor: Processor):
    assert toy_processor.pad_token_id == toy_processor.tokenizer.convert_tokens_to_ids("<pad>")


def test_without_a_pad_token_unk_fills_up(model_dir: Path):
    edit_json("tokenizer_config.json", pad_token=None)(model_dir)
    processor = load_processor(model_dir, "pad")
    assert processor.pad_token_id == processor.tokenizer.convert_tokens_to_ids("<unk>")


BAD_MODELS: dict[str, tuple[Edit, str]] = {
    "no config": (remove("config.json"), r"config\.json does not exist"),
    "config is no JSON": (overwrite("config.json", b"{"), r"config\.json cannot be read"),
    "config is a list": (overwrite("config.json", b"[]"), r"config\.json holds no JSON object"),
    "config is nested without end": (overwrite("config.json", b"[" * 100_000), r"config\.json cannot be read"),
    "not a LLaVA": (edit_json("config.json", model_type="llama"), r"model_type is 'llama', not 'llava'"),
    "the original layout": (
        edit_json("config.json", model_type="llava_llama"),
        r"layout of the original code is another one",
    ),
    "another tower": (
        edit_json("config.json", vision_config__model_type="siglip_vision_model"),
        r"vision_config\.model_type is 'siglip_vision_model'",
    ),
    "another language model": (edit_json("config.json", text_config__model_type="qwen2"), r"is 'qwen2', not 'llama'"),
    "text_config is no object": (edit_json("config.json", text_config=[1]), r"text_config\.model_type is None"),
    "a value of a wrong type": (edit_json("config.json", vision_config__image_size="big"), r"config\.json cannot"),
    "a tower that is not square": (
        edit_json("config.json", vision_config__image_size=[56, 28]), r"vision_config\.image_size is \[56, 28\]"),
    "an unknown strategy": (
        edit_json("config.json", vision_feature_select_strategy="half"), r"strategy.*half"),
    "no tokenizer.json": (remove("tokenizer.json"), r"tokenizer\.json does not exist"),
    "tokenizer.json cut off": (shorten("tokenizer.json"), r"tokenizer\.json cannot be read"),
    "no tokenizer_config.json": (remove("tokenizer_config.json"), r"tokenizer_config\.json does not exist"),
    "another image token": (
        edit_json("config.json", image_token_index=7), r"<image> has id 510, but .* image_token_index is 7"),
    "another end of sequence": (
        edit_json("tokenizer_config.json", eos_token="<s>"), r"end-of-sequence token is '<s>'"),
    "fewer embeddings than tokens": (
        edit_json("config.json", text_config__vocab_size=500), r"has id 511, but the model has 500 embeddings"),
    "no processor files": (remove("processor_config.json"), r"processor_config\.json does not exist"),
    "the 224 px tower's processor": (
        edit_json("processor_config.json", image_processor__crop_size={"height": 224, "width": 224}),
        r"crop_size is 224 x 224, but config\.json's vision tower sees 56 px"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MODELS)
def test_an_unusable_checkpoint_is_named_with_its_file(name: str, model_dir: Path):
    damage, message = BAD_MODELS[name]
    damage(model_dir)
    with pytest.raises(StageError, match=message) as caught:
        load_processor(model_dir, "pad")
    assert caught.value.reason is Reason.INVALID_MODEL


BAD_WEIGHTS: dict[str, tuple[Edit, str]] = {
    "none": (remove("model.safetensors"), r"neither model\.safetensors\.index\.json nor model\.safetensors: fetch"),
    "pickles without an index": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00002.bin"),
        r": pytorch_model-00001-of-00002\.bin is read if it .* or stands in pytorch_model\.bin\.index\.json"),
    "cut off": (shorten("model.safetensors"), r"model\.safetensors \([\d,]+ bytes\) is damaged or was fetched in part"),
    "a pointer file": (
        overwrite("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        r"model\.safetensors \(\d+ bytes\) is damaged"),
    "a missing shard": (index_of({"a": "model-00002-of-00002.safetensors"}), r"-of-00002\.safetensors does not exist"),
    "a missing tensor": (index_of({"lm_head.bias": "model.safetensors"}), r"lacks 1 tensors .* lm_head\.bias"),
    "an index without a map": (index_of(None), r"weight_map must be an object"),
    "an index into another folder": (index_of({"a": "../b.safetensors"}), r"must be a \.safetensors file of the same"),
    "an index of pickled files": (index_of({"a": "pytorch_model.bin"}), r"must be a \.safetensors file of the same"),
    "an index with a number": (index_of({"a": 1}), r"must be a \.safetensors file of the same"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_missing_or_damaged_weights_are_named(name: str, model_dir: Path):
    damage, message = BAD_WEIGHTS[name]
    damage(model_dir)
    with pytest.raises(StageError, match=message) as caught:
        check_weights(model_dir)
    assert caught.value.reason is Reason.INVALID_MODEL


def test_whole_weights_are_accepted(toy_model_dir: Path):
    assert check_weights(toy_model_dir) == (toy_model_dir / "model.safetensors").stat().st_size


@pytest.fixture(params=["pad", "square"])
def exported(request: pytest.FixtureRequest, toy_model_dir: Path, tmp_path: Path) -> tuple[Processor, Path]:
    processor = load_processor(toy_model_dir, request.param)
    folder = tmp_path / "merged"
    folder.mkdir()
    shutil.copy(toy_model_dir / "config.json", folder)
    save_processor(processor, folder)
    return processor, folder


CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is the total?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "9.00"}]},
    {"role": "user", "content": [{"type": "text", "text": "And the date, naïve one?"}]},
]


def test_plain_autoprocessor_serves_what_was_trained(exported: tuple[Processor, Path], tmp_path: Path):
    processor, folder = exported
    image = open_image(draw_image(tmp_path / "a.png", size=(90, 31)))
    server = AutoProcessor.from_pretrained(folder)
    sample = make_sample("What is the total?", "9.00", "And the date, naïve one?", "Today.")
    ours = encode_prompt(sample.turns[:3], (0,), processor)
    in_one_step = server.apply_chat_template(
        CHAT, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np",
        processor_kwargs={"images": [image]},
    )  # fmt: skip
    # The template says the first token itself, as transformers wants templates to: servers add none.
    in_two_steps = server(
        images=[image], text=server.apply_chat_template(CHAT, add_generation_prompt=True), return_tensors="np",
        add_special_tokens=False,
    )  # fmt: skip
    for served in (in_one_step, in_two_steps):
        assert served["input_ids"][0].tolist() == ours
        np.testing.assert_array_equal(served["pixel_values"][0], pixel_values(image, processor), strict=True)


def test_the_exported_template_lays_out_a_whole_conversation(exported: tuple[Processor, Path]):
    processor, folder = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text_only = [
        {"role": "user", "content": " Hello. "}, {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye."}, {"role": "assistant", "content": "Bye!\n"},
    ]  # fmt: skip
    text = tokenizer.apply_chat_template(text_only, tokenize=False)
    assert text == f"<s>{SYSTEM} USER: Hello. ASSISTANT: Hi.</s>USER: Bye. ASSISTANT: Bye!</s>"
    sample = make_sample("Hello.", "Hi.", "Bye.", "Bye!", image_turns=())
    ours = list(encode(sample, processor, 4096).input_ids)
    assert tokenizer(text, add_special_tokens=False).input_ids == ours
    assert tokenizer.apply_chat_template(text_only, tokenize=True, return_dict=False) == ours
    told = [{"role": "system", "content": "Be brief."}, *text_only[:1]]
    assert tokenizer.apply_chat_template(told, tokenize=False) == "<s>Be brief. USER: Hello. "
    whole = [{"role": "system", "content": [{"type": "text", "text": " Be brief.\n"}]}, *text_only]
    with_system = replace(sample, system="Be brief.")
    assert tokenizer.apply_chat_template(whole, tokenize=False) == f"<s>{render(with_system, gap=processor.gap).text}"


@pytest.mark.parametrize("told", [{}, {"bos_token": None}], ids=["not told", "none"])
def test_the_exported_template_begins_with_the_text_where_there_is_no_first_token(told: dict[str, None]):
    text = jinja2.Template(chat_template("")).render(messages=[{"role": "user", "content": "Hello."}], **told)
    assert text == f"{SYSTEM} USER: Hello. "


def test_tokenizer_files_are_the_checkpoint_s_own(exported: tuple[Processor, Path], toy_model_dir: Path):
    _, folder = exported
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (toy_model_dir / name).read_bytes()


def test_a_template_inside_the_tokenizer_s_settings_is_dropped(model_dir: Path, tmp_path: Path):
    edit_json("tokenizer_config.json", chat_template="{{ 'theirs' }}")(model_dir)
    save_processor(load_processor(model_dir, "pad"), tmp_path / "merged")
    assert "chat_template" not in json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    text = AutoTokenizer.from_pretrained(tmp_path / "merged").apply_chat_template(
        [{"role": "user", "content": "Hello."}], tokenize=False
    )
    assert text.startswith(f"<s>{SYSTEM}")


def test_old_and_new_processor_files_say_the_same(exported: tuple[Processor, Path]):
    _, folder = exported
    new = json.loads((folder / "processor_config.json").read_text())
    old = json.loads((folder / "preprocessor_config.json").read_text())
    assert old == new["image_processor"]
    assert new["num_additional_image_tokens"] == 1


def test_a_processing_loaded_from_the_export_is_the_same(exported: tuple[Processor, Path]):
    processor, folder = exported
    again = load_processor(folder, processor.aspect_ratio)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    turns = make_sample("What?", "That.").turns[:1]
    assert encode_prompt(turns, (0,), again) == encode_prompt(turns, (0,), processor)
