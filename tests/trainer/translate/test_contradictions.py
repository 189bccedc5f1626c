"""Each way in which a command contradicts LLaVA v1.5, itself or this trainer: what is decided, and that it is said."""

import json
from typing import Any

import pytest

from llava_trainer.translate.errors import TranslateError
from llava_trainer.translate.manifest import Options, Translation, translate
from tests.trainer.translate.test_flags import BASE

ALIGN = {"tune_mm_mlp_adapter": "True", "version": "plain", "model_name_or_path": "lmsys/vicuna-7b-v1.5"}


def made(
    changes: dict[str, str], *, without: tuple[str, ...] = (), after: str = "", file: str | None = None, **options: Any
) -> Translation:
    flags = {name: value for name, value in (BASE | changes).items() if name not in without}
    words = " ".join(f"--{name} {value}" for name, value in flags.items())
    text = f"deepspeed --num_gpus 8 llava/train/train_mem.py {words}\n{after}"
    return translate(text, Options(**options), lambda _: file)


def value_at(translation: Translation, place: str) -> Any:
    found = translation.manifest["spec"]
    for part in place.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def notes_at(translation: Translation, place: str) -> str:
    return "\n".join(note.text for note in translation.notes if ".".join(note.place) == f"spec.{place}")


@pytest.mark.parametrize(
    ("changes", "without", "place", "value", "said"),
    [
        (
            {"vision_tower": "clip-vit-large-patch14"},
            (),
            "model.source",
            "hf://liuhaotian/llava-v1.5-7b",
            "keeping 336",
        ),
        ({}, ("vision_tower",), "model.source", "hf://liuhaotian/llava-v1.5-7b", "no --vision_tower"),
        ({"model_name_or_path": "llava-hf/llava-1.5-7b-hf"}, (), "model.visionTower", None, ""),
        ({"model_name_or_path": "mine/tuned"}, (), "model.source", "hf://mine/tuned", "is taken for a LLaVA v1.5"),
        ({"model_name_or_path": "o/llava-"}, (), "model.source", "pvc://my-models/o/llava-", "o/llava- on the machine"),
        ({"model_name_or_path": "s3://b/llava"}, (), "model.source", "s3://b/llava", ""),
        (
            {"model_name_or_path": "../m/llava"},
            (),
            "model.source",
            "pvc://my-models/m/llava",
            "../m/llava on the machine",
        ),
        ({"pretrain_mm_mlp_adapter": "p.bin"}, (), "model.projector", "pvc://my-models/p.bin", "p.bin on the machine"),
        ({"image_aspect_ratio": "anyres"}, (), "dataset.imageAspectRatio", "pad", "not offered for v1.5"),
        ({"image_aspect_ratio": "square"}, (), "dataset.imageAspectRatio", "square", ""),
        ({}, ("image_folder",), "dataset.file", "train.json", "pictures are looked for beside this file"),
        ({"bits": "4"}, (), "training.method", "qlora", ""),
        ({"bits": "4", "lora_enable": "False"}, (), "training.method", "qlora", "cannot train quantised weights"),
        ({"bits": "8"}, (), "training.method", "qlora", "8 bits are not offered"),
        ({"bits": "3"}, (), "training.method", "lora", "LLaVA knows 16, 8 and 4"),
        ({"lora_enable": "False"}, (), "training.method", "full", ""),
        (
            {"lora_bias": "all"},
            (),
            "training.lora",
            {"rank": 64, "alpha": 16, "dropout": 0.05},
            "biases are not trained",
        ),
        ({"learning_rate": "2e-5"}, (), "training.learningRate", 2e-5, "LoRA's is 2e-4"),
        ({}, ("learning_rate",), "training.learningRate", 5e-5, "transformers' default"),
        ({"mm_projector_lr": "1e-5"}, (), "training.projectorLearningRate", 1e-5, ""),
        ({"freeze_mm_mlp_adapter": "True"}, (), "training.projector", "frozen", ""),
        ({"freeze_mm_mlp_adapter": "True"}, (), "training.projectorLearningRate", None, ""),
        ({"freeze_mm_mlp_adapter": "False"}, (), "training.projector", None, ""),
        ({"num_train_epochs": "1.5"}, (), "training.epochs", 2, "whole epochs only, so 2"),
        ({"max_steps": "10"}, (), "training.epochs", None, ""),
        ({"max_steps": "10"}, (), "training.maxSteps", 10, "--num_train_epochs 1 has no effect beside it"),
        ({"max_steps": "-1"}, (), "training.maxSteps", None, ""),
        ({"adam_beta2": "0.95"}, (), "training.optimizer", {"beta2": 0.95}, ""),
        ({"adam_beta1": "0.8", "adam_epsilon": "1e-6"}, (), "training.optimizer", {"beta1": 0.8, "epsilon": 1e-6}, ""),
        ({}, (), "training.optimizer", None, ""),
        ({}, ("num_train_epochs",), "training.epochs", 3, "transformers' default"),
        ({"lr_scheduler_type": "constant", "warmup_ratio": "0.1"}, (), "training.warmupRatio", 0.0, ""),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": "0.1"}, (), "training.warmupRatio", 0.1, ""),
        ({"lr_scheduler_type": "polynomial"}, (), "training.scheduler", "cosine", "not offered"),
        ({"warmup_steps": "10"}, (), "training.warmupRatio", 0.0, "a share of the steps here"),
        ({"model_max_length": "512"}, (), "training.maxLength", 2048, "would cut every picture"),
        ({}, ("model_max_length",), "training.maxLength", 2048, "no --model_max_length, so 512"),
        ({"bf16": "False", "fp16": "True"}, (), "training.precision", "bf16", "bf16 is what is offered"),
        ({"fp16": "True"}, (), "training.precision", "bf16", "transformers refuses both"),
        ({}, ("bf16",), "training.precision", "bf16", "neither --bf16 nor --fp16"),
        ({"save_steps": "50000"}, (), "training.checkpoint.everySteps", 200, "no checkpoint would ever be written"),
        (
            {"save_steps": "0.1"},
            (),
            "training.checkpoint.everySteps",
            200,
            "checkpoints are written every so many steps",
        ),
        (
            {"save_strategy": "no"},
            (),
            "training.checkpoint.everySteps",
            200,
            "--save_strategy no: checkpoints are written",
        ),
        ({"save_total_limit": "3"}, (), "training.checkpoint.keep", 3, ""),
        ({"deepspeed": "zero3_offload.json"}, (), "training.zero.offload", {"optimizer": True, "parameters": True}, ""),
        ({"deepspeed": "zero2_offload.json"}, (), "training.zero.offload", {"optimizer": True}, ""),
        ({"deepspeed": "ds.json"}, (), "training.zero.stage", 2, "neither its name nor its content tells"),
        ({"bits": "4", "deepspeed": "zero3.json"}, (), "training.zero.stage", 2, "cannot be partitioned"),
        ({}, ("deepspeed",), "training.zero.stage", 2, "no --deepspeed"),
        ({"group_by_modality_length": "True"}, (), "training.grouping", "modality", ""),
        ({"group_by_length": "True"}, (), "training.grouping", "length", ""),
        ({"mm_vision_select_layer": "-1"}, (), "model", ..., "v1.5's features are those of layer -2"),
        ({"mm_use_im_start_end": "True"}, (), "model", ..., "no tokens around a picture"),
        ({"mm_projector_type": "linear"}, (), "model", ..., "only v1.5's mlp2x_gelu is offered"),
        ({"version": "v0"}, (), "training", ..., "trained with the v1 prompt"),
        ({}, ("version",), "training", ..., "no --version, so v0"),
        ({"optim": "paged_adamw_8bit"}, (), "training", ..., "the optimiser is AdamW"),
        ({"output_dir": "./7B_Test.v1/"}, (), "training", ..., ""),
    ],
)
def test_what_is_decided_is_said_at_its_place(
    changes: dict[str, str], without: tuple[str, ...], place: str, value: Any, said: str
):
    translation = made(changes, without=without)
    if value is not ...:
        assert value_at(translation, place) == value
    assert said in notes_at(translation, place)


def test_names_are_made_of_the_output_folder_or_given():
    assert made({"output_dir": "./ckpt/7B_Test.v1/"}).manifest["metadata"]["name"] == "b-test-v1"
    assert made({}, without=("output_dir",)).manifest["metadata"]["name"] == "llava"
    assert made({"output_dir": "x" * 200}).manifest["metadata"]["name"] == "x" * 45
    assert made({}, name="mine").manifest["metadata"]["name"] == "mine"
    with pytest.raises(TranslateError, match="--name 7B: must begin with a letter"):
        made({}, name="7B")


@pytest.mark.parametrize(
    ("content", "zero"),
    [
        ({"zero_optimization": {"stage": 1}}, {"stage": 1}),
        (
            {
                "zero_optimization": {
                    "stage": 3,
                    "offload_param": {"device": "cpu"},
                    "offload_optimizer": {"device": "none"},
                }
            },
            {"stage": 3, "offload": {"parameters": True}},
        ),
        ({"zero_optimization": {"stage": 7}}, {"stage": 2}),
        ({}, {"stage": 2}),
    ],
)
def test_deepspeeds_settings_are_read_where_they_can_be(content: dict[str, Any], zero: dict[str, Any]):
    translation = made({"deepspeed": "mine.json"}, file=json.dumps(content))
    assert value_at(translation, "training.zero") == zero
    assert value_at(made({"deepspeed": "mine.json"}, file="no json"), "training.zero") == {"stage": 2}


def test_batches_are_samples_times_accumulation_times_processes():
    translation = made({"per_device_train_batch_size": "4", "gradient_accumulation_steps": "2"}, nodes=2)
    assert value_at(translation, "training.batch") == {"perDevice": 4, "global": 128}
    assert value_at(translation, "workers") == {"replicas": 2, "gpus": 8}
    assert value_at(made({"per_gpu_train_batch_size": "3"}), "training.batch") == {"perDevice": 3, "global": 24}


def test_without_gpus_everything_runs_on_the_cpu():
    translation = made({}, gpus=0)
    assert value_at(translation, "training.precision") == "auto"
    assert value_at(translation, "evaluation.workers.gpus") == 0
    assert value_at(translation, "training.batch") == {"perDevice": 8, "global": 8}


def test_a_merge_line_means_lora_whatever_rate_is_given():
    translation = made({"lora_enable": "False", "learning_rate": "1e-4"}, after="python merge_lora_weights.py --x y")
    assert value_at(translation, "training.method") == "lora"
    assert value_at(translation, "training.learningRate") == 1e-4, "2e-5 alone is known to be full fine-tuning's"
    assert "the real ones are --model-path, --model-base, --save-model-path" in notes_at(translation, "merge")


def test_a_merge_line_is_held_against_the_training():
    merge = "python scripts/merge_lora_weights.py --model-path out/base --model-base liuhaotian/llava-v1.5-13b"
    said = notes_at(made({}, after=merge), "merge")
    assert "would ask for --save-model-path" in said
    assert "--model-base liuhaotian/llava-v1.5-13b is not what was trained (liuhaotian/llava-v1.5-7b)" in said


def test_literal_without_numbers_is_fp32():
    assert value_at(made({}, without=("bf16",), literal=True), "training.precision") == "fp32"


@pytest.mark.parametrize(
    ("changes", "without", "message"),
    [
        ({}, ("model_name_or_path",), "no --model_name_or_path"),
        ({}, ("data_path",), "no --data_path"),
        ({"model_name_or_path": "lmsys/vicuna-7b-v1.5"}, (), "nothing gives it an aligned projector"),
        ({"lora_r": "5000"}, (), "spec.training.lora.rank is 5000"),
        ({"per_device_train_batch_size": "0"}, (), "spec.training.batch.perDevice is 0"),
        ({"adam_beta2": "1"}, (), "spec.training.optimizer.beta2 is 1"),
        ({"adam_epsilon": "0"}, (), "spec.training.optimizer.epsilon is 0"),
    ],
)
def test_what_no_manifest_can_say_is_refused(changes: dict[str, str], without: tuple[str, ...], message: str):
    with pytest.raises(TranslateError, match=message):
        made(changes, without=without)


def test_an_aligned_model_is_aligned_anew_only_with_a_new_projector():
    translation = made(ALIGN | {"model_name_or_path": "liuhaotian/llava-v1.5-7b"})
    assert value_at(translation, "alignment.freshProjector") is True
    assert "would damage" in notes_at(translation, "alignment.freshProjector")


def test_alignment_with_another_template_is_said():
    assert "with the plain template" in notes_at(made(ALIGN | {"version": "v1"}), "alignment")
    assert "recipe is 1e-3" in notes_at(made(ALIGN, without=("learning_rate",)), "alignment.learningRate")
    assert value_at(made(ALIGN, without=("vision_tower",)), "model.visionTower").endswith("336")


def test_alignment_is_of_the_projector_and_goes_by_epochs():
    translation = made(ALIGN | {"max_steps": "10", "freeze_mm_mlp_adapter": "True"})
    assert "--max_steps 10: alignment ends after whole epochs" in notes_at(translation, "alignment.epochs")
    assert "in LLaVA nothing would learn then" in notes_at(translation, "alignment")
    training = value_at(translation, "training")
    assert training["method"] == "none"
    assert not {"maxSteps", "projector"} & training.keys()


def test_two_phases_that_do_not_fit_together_are_said():
    words = " ".join(f"--{name} {value}" for name, value in (BASE | ALIGN | {"output_dir": "out/aligned"}).items())
    first = f"deepspeed --num_gpus 4 llava/train/train_mem.py {words} --logging_steps 5"
    translation = made({"pretrain_mm_mlp_adapter": "old/mm_projector.bin"}, after=first)
    assert "the alignment starts from lmsys/vicuna-7b-v1.5 and the training from" in notes_at(translation, "model")
    assert "not old/mm_projector.bin" in notes_at(translation, "alignment")
    assert "--logging_steps 5" in notes_at(translation, "alignment")
    assert "both phases train on the same pods" in notes_at(translation, "alignment.batch")
    assert value_at(translation, "alignment.batch.global") == 64


@pytest.mark.parametrize("changes", [{}, ALIGN])
def test_one_training_a_manifest(changes: dict[str, str]):
    words = " ".join(f"--{name} {value}" for name, value in (BASE | changes).items())
    with pytest.raises(TranslateError, match=r"trains more than once \(lines 1 and 2\)"):
        made(changes, after=f"deepspeed llava/train/train.py {words}")


QUESTION = "args = Namespace(query='{query}', image_file={image}, sep=',', temperature={temperature}, num_beams=2)"


def ask(query: str = "What?", image: str = "'/data/images/a/b.png'", temperature: str = "0") -> str:
    return QUESTION.format(query=query, image=image, temperature=temperature)


def test_questions_become_prompts():
    translation = made({}, after=ask() + "\n" + ask(query="<image-placeholder> Who?", temperature="1"))
    evaluation = value_at(translation, "evaluation")
    assert evaluation["prompts"] == [{"image": "a/b.png", "text": "What?"}, {"image": "a/b.png", "text": "Who?"}]
    assert evaluation["generation"] == {"temperature": 1, "numBeams": 2}
    assert "those of the last one are taken" in notes_at(translation, "evaluation.generation")


@pytest.mark.parametrize(
    ("block", "prompt", "said"),
    [
        (
            ask(image="'https://x/y/a.png?z=1'"),
            {"image": "a.png", "text": "What?"},
            "put https://x/y/a.png?z=1 as a.png",
        ),
        (ask(image="'other/a.png'"), {"image": "a.png", "text": "What?"}, "put other/a.png as a.png"),
        (ask(image="'a.png,b.png'"), {"image": "a.png", "text": "What?"}, "the first of 2 is taken"),
        (ask(image="['a.png', 'b.png']"), {"image": "a.png", "text": "What?"}, "the first of 2 is taken"),
        (ask(image="None"), {"text": "What?"}, ""),
        (ask(query=""), {"image": "a/b.png", "text": "Describe this image in detail."}, "is given no query"),
    ],
)
def test_images_of_questions_have_to_be_in_the_dataset(block: str, prompt: dict[str, str], said: str):
    translation = made({}, after=block)
    assert value_at(translation, "evaluation.prompts") == [prompt]
    assert said in notes_at(translation, "evaluation.prompts")


def test_more_questions_than_a_run_takes_are_cut_and_said():
    translation = made({}, after="\n".join(ask(query=f"What {number}?") for number in range(40)))
    assert len(value_at(translation, "evaluation.prompts")) == 32
    assert "the first 32 of 40 questions" in notes_at(translation, "evaluation.prompts")


def test_llavas_evaluation_command_is_read_with_its_own_defaults():
    command = (
        "python -m llava.eval.run_llava --model-path x --image-file /data/images/a.png --query 'a: \"b\"' --num_beams=3"
    )
    translation = made({}, after=command)
    assert value_at(translation, "evaluation.prompts") == [{"image": "a.png", "text": 'a: "b"'}]
    assert value_at(translation, "evaluation.generation") == {"temperature": 0.2, "numBeams": 3, "maxNewTokens": 512}
    assert notes_at(translation, "evaluation.generation") == ""
    with pytest.raises(TranslateError, match="line 2: --num_beams many: must be a number"):
        made({}, after=command.replace("=3", "=many"))


def test_variables_that_steered_the_command_are_named_without_what_they_hold():
    text = "export WANDB_API_KEY=very-secret MINE=1\nNCCL_IB_HCA=mlx5_0 CUDA_VISIBLE_DEVICES=0 deepspeed x/train.py "
    translation = translate(text + " ".join(f"--{k} {v}" for k, v in BASE.items()), Options(), lambda _: None)
    said = notes_at(translation, "workers")
    assert "not taken over: WANDB_API_KEY, NCCL_IB_HCA;" in said
    assert "very-secret" not in translation.text


def test_a_claim_has_to_be_one():
    with pytest.raises(TranslateError, match="--dataset-claim My_Data: must be CLAIM or CLAIM/FOLDER"):
        made({}, dataset_claim="My_Data")
    with pytest.raises(TranslateError, match="--model-claim"):
        made({}, model_claim="a/../b")


def test_no_command_is_an_error_that_shows_one():
    with pytest.raises(TranslateError, match=r"no training command found: .* deepspeed llava/train/train_mem.py"):
        translate("python scripts/merge_lora_weights.py --model-path x", Options(gpus=8), lambda _: None)
