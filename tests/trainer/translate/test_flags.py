"""No flag of train.py is passed over in silence: each changes the manifest or is named in a comment of it."""

import pytest

from llava_trainer.translate.errors import OptionMissingError, TranslateError
from llava_trainer.translate.flags import read_flags
from llava_trainer.translate.known import DATA_ARGUMENTS, FLAGS, LLAVA_TRAINING_ARGUMENTS, MODEL_ARGUMENTS, Flag
from llava_trainer.translate.manifest import Options, Translation, translate

BASE = {
    "model_name_or_path": "liuhaotian/llava-v1.5-7b", "version": "v1", "data_path": "/data/train.json",
    "image_folder": "/data/images", "vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": "-2", "mm_use_im_patch_token": "False",
    "image_aspect_ratio": "pad", "lora_enable": "True", "bf16": "True", "learning_rate": "2e-4",
    "num_train_epochs": "1", "model_max_length": "2048", "save_steps": "100", "deepspeed": "zero2.json",
    "output_dir": "out/base",
}  # fmt: skip
OTHERS = {
    "save_strategy": "epoch", "deepspeed": "zero3.json", "lr_scheduler_type": "polynomial", "optim": "adafactor",
    "image_aspect_ratio": "square", "quant_type": "fp4", "bits": "4", "version": "llava_llama_2", "save_steps": "7000",
    "model_max_length": "4096", "mm_vision_select_feature": "cls_patch",
}  # fmt: skip
WITH_BITS = {"quant_type", "double_quant"}


def other_value(name: str, flag: Flag) -> str:
    if name in OTHERS:
        return OTHERS[name]
    if flag.kind == "bool":
        return str(BASE.get(name, str(flag.default)) != "True")
    return {"int": "3", "float": "0.25", "str": "other/thing-336"}[flag.kind]


def translate_flags(flags: dict[str, str]) -> Translation:
    words = " ".join(f"--{name} {value}" for name, value in flags.items())
    return translate(f"deepspeed --num_gpus 8 llava/train/train_mem.py {words}", Options(), lambda _: None)


def test_every_argument_of_llava_is_known():
    assert set(MODEL_ARGUMENTS) == {
        "model_name_or_path", "version", "freeze_backbone", "tune_mm_mlp_adapter", "vision_tower",
        "mm_vision_select_layer", "pretrain_mm_mlp_adapter", "mm_projector_type", "mm_use_im_start_end",
        "mm_use_im_patch_token", "mm_patch_merge_type", "mm_vision_select_feature",
    }  # fmt: skip
    assert set(DATA_ARGUMENTS) == {
        "data_path", "lazy_preprocess", "is_multimodal", "image_folder", "image_aspect_ratio", "image_grid_pinpoints",
    }  # fmt: skip
    assert set(LLAVA_TRAINING_ARGUMENTS) == {
        "cache_dir", "optim", "remove_unused_columns", "freeze_mm_mlp_adapter", "mpt_attn_impl", "model_max_length",
        "double_quant", "quant_type", "bits", "lora_enable", "lora_r", "lora_alpha", "lora_dropout", "lora_weight_path",
        "lora_bias", "mm_projector_lr", "group_by_modality_length",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_no_flag_is_passed_over_in_silence(name: str):
    base = BASE | ({"bits": "4"} if name in WITH_BITS else {})
    value = other_value(name, FLAGS[name])
    assert value != base.get(name)
    changed, unchanged = translate_flags(base | {name: value}), translate_flags(base)
    said = {note.text for note in changed.notes} - {note.text for note in unchanged.notes}
    assert changed.manifest != unchanged.manifest or any(f"--{name}" in text for text in said)


def test_a_flag_without_effect_is_named_with_the_reason():
    notes = [note.text for note in translate_flags(BASE | {"logging_steps": "1"}).notes]
    assert any("no effect here: --logging_steps 1 (every step is in the run's curve" in text for text in notes)


@pytest.mark.parametrize(
    ("value", "tracking"), [("tensorboard", True), ("all", True), ("wandb", False), ("none", False)]
)
def test_tensorboard_is_written_where_it_was(value: str, tracking: bool):
    translated = translate_flags(BASE | {"report_to": value})
    training = translated.manifest["spec"]["training"]
    assert (training.get("tracking") == {"tensorboard": {}}) == tracking
    assert any(f"no effect here: --report_to {value}" in note.text for note in translated.notes) != tracking
    assert "tracking" not in translate_flags(BASE).manifest["spec"]["training"], (
        "transformers' default is what is there"
    )


def test_a_token_is_never_repeated():
    assert "hf_secret" not in translate_flags(BASE | {"hub_token": "hf_secret"}).text


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--lora_r", "8"], "lora_r", 8),
        (["--lora-r=8"], "lora_r", 8),
        (["--bf16"], "bf16", True),
        (["--bf16", "yes"], "bf16", True),
        (["--no_mm_use_im_patch_token"], "mm_use_im_patch_token", False),
        (["--mm_use_im_p", "False"], "mm_use_im_patch_token", False),
        (["--mm_vision_select_layer", "-2"], "mm_vision_select_layer", -2),
        (["--weight_decay", "0."], "weight_decay", 0.0),
        (["--learning_rate", "1e-4", "--learning_rate", "2e-4"], "learning_rate", 2e-4),
    ],
)
def test_flags_are_read_as_transformers_reads_them(words: list[str], name: str, value: object):
    assert read_flags(words, 1).given == {name: value}


def test_what_is_left_out_has_the_default_of_the_original():
    flags = read_flags([], 1)
    assert (flags.whole("lora_r"), flags.number("num_train_epochs"), flags.text("image_aspect_ratio")) == (
        64,
        3,
        "square",
    )
    assert flags.is_on("mm_use_im_patch_token")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora_r", "many"], "line 7: --lora_r many: must be a whole number"),
        (["--learning_rate", "fast"], "line 7: --learning_rate fast: must be a number"),
        (["--bf16", "maybe"], "line 7: --bf16 maybe: must be True or False"),
        (["--lora_r", "--bf16"], "line 7: --lora_r has no value"),
    ],
)
def test_values_that_cannot_be_are_refused(words: list[str], message: str):
    with pytest.raises(TranslateError, match=message):
        read_flags(words, 7)


def test_a_number_that_is_a_variable_without_value_is_asked_for():
    with pytest.raises(OptionMissingError, match="--set R=VALUE"):
        read_flags(["--lora_r", "$R"], 1)


@pytest.mark.parametrize(
    ("written", "nearest"),
    [("--lora_enabled", "lora_enable"), ("--per_device", "per_device_train_batch_size"), ("--zzz", None)],
)
def test_unknown_flags_are_named_with_the_nearest(written: str, nearest: str | None):
    (unknown,) = read_flags([written, "True"], 1).unknown
    assert unknown.written == f"{written} True"
    assert unknown.nearest == nearest


def test_unknown_flags_words_without_flag_and_repetitions_are_warned_of():
    warnings = "\n".join(translate_flags(BASE | {"lora_enabled": "True stray --lora_r 8 --lora_r 16"}).warnings)
    assert "--lora_enabled True: train.py has no such flag; the nearest that it has is --lora_enable" in warnings
    assert "'stray' belongs to no flag" in warnings
    assert "--lora_r is given more than once; the last one counts: --lora_r 16" in warnings
