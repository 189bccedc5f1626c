"""LLaVA's own scripts, and the recipe that people copy, become the manifests that lie beside them.

``NAME.txt`` is what is pasted, ``NAME.yaml`` what comes out, comments included, on 8 GPUs. tests/cluster applies the
same files to a real API server.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_api.spec import Spec
from llava_trainer.translate.manifest import Options, Translation, translate

FOLDER = Path(__file__).parent
RECIPES = sorted(path.stem for path in FOLDER.glob("*.txt"))


def translate_recipe(name: str, **options: Any) -> Translation:
    return translate((FOLDER / f"{name}.txt").read_text(), Options(gpus=8, **options), lambda _: None)


def spec_of(name: str, **options: Any) -> dict[str, Any]:
    return dict(translate_recipe(name, **options).manifest["spec"])


def comments_before(text: str, key: str) -> str:
    """The comment above a key, on one line."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
    found: list[str] = []
    while at and lines[at - 1].lstrip().startswith("#"):
        at -= 1
        found.insert(0, lines[at].strip().removeprefix("#").strip())
    return " ".join(found)


def test_the_recipes_are_there():
    assert RECIPES == ["both_phases", "copied_recipe", "finetune", "finetune_lora", "finetune_qlora", "finetune_task",
                       "finetune_task_lora", "pretrain"]  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_become_the_manifests_beside_them(name: str):
    assert translate_recipe(name).text == (FOLDER / f"{name}.yaml").read_text()


@pytest.mark.parametrize("literal", [False, True], ids=["meant", "literal"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_text_is_the_manifest_and_the_manifest_is_valid(name: str, literal: bool):
    translation = translate_recipe(name, literal=literal)
    assert yaml.safe_load(translation.text) == translation.manifest
    spec = Spec.model_validate(translation.manifest["spec"])
    assert spec.training.batch.global_ == spec.training.batch.per_device * 8


def test_lora_by_llavas_own_script():
    training = spec_of("finetune_task_lora")["training"]
    assert training["method"] == "lora"
    assert training["lora"] == {"rank": 128, "alpha": 256, "dropout": 0.05}
    assert (training["learningRate"], training["projectorLearningRate"]) == (2e-4, 2e-5)
    assert training["zero"] == {"stage": 3}
    assert training["grouping"] == "modality"
    assert training["batch"] == {"perDevice": 16, "global": 128}
    assert spec_of("finetune_task_lora")["model"] == {
        "source": "hf://liuhaotian/llava-v1.5-13b", "visionTower": "hf://openai/clip-vit-large-patch14-336",
    }  # fmt: skip


def test_full_by_llavas_own_script():
    spec = spec_of("finetune_task")
    assert spec["training"]["method"] == "full"
    assert (spec["training"]["learningRate"], spec["training"]["projectorLearningRate"]) == (2e-5, 2e-5)
    assert spec["storage"] == {"size": "1Ti"}


def test_a_language_model_with_an_aligned_projector():
    for name in ("finetune", "finetune_lora"):
        assert spec_of(name)["model"] == {
            "languageModel": "hf://lmsys/vicuna-13b-v1.5",
            "visionTower": "hf://openai/clip-vit-large-patch14-336",
            "projector": "pvc://my-models/checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin",
        }


def test_alignment_by_llavas_own_script():
    spec = spec_of("pretrain")
    assert spec["model"] == {
        "languageModel": "hf://lmsys/vicuna-13b-v1.5", "visionTower": "hf://openai/clip-vit-large-patch14-336",
    }  # fmt: skip
    assert spec["alignment"]["learningRate"] == 1e-3
    assert spec["alignment"]["batch"] == {"perDevice": 32, "global": 256}
    assert spec["alignment"]["dataset"]["imageAspectRatio"] == "square"
    assert spec["training"]["method"] == "none"


def test_alignment_and_training_of_one_text_are_one_run():
    spec = spec_of("both_phases")
    assert "projector" not in spec["model"], "it comes from the alignment"
    assert spec["alignment"]["dataset"]["file"] == "blip_laion_cc_sbu_558k.json"
    assert spec["dataset"]["file"] == "llava_v1_5_mix665k.json"
    assert (spec["training"]["method"], spec["training"]["learningRate"]) == ("full", 2e-5)


def test_four_bits_are_qlora():
    spec = spec_of("finetune_qlora")
    assert spec["training"]["method"] == "qlora"
    assert spec["training"]["quantization"] == {"double": True}
    assert spec["training"]["lora"] == {"rank": 64, "alpha": 16, "dropout": 0.05}
    assert spec["model"]["languageModel"] == "pvc://my-models/checkpoints/vicuna-v1-3-7b"
    assert spec["dataset"]["images"] == "path/to/coco/train2017"


def test_a_script_with_its_variables_commented_out_shows_what_to_fill_in():
    text = (FOLDER / "finetune_qlora.txt").read_text().replace("MODEL_VERSION=", "# MODEL_VERSION=")
    left_open = translate(text, Options(gpus=8), lambda _: None)
    assert left_open.manifest["spec"]["model"]["languageModel"] == "pvc://my-models/checkpoints/MODEL_VERSION"
    assert any("REPLACE MODEL_VERSION" in warning and "--set MODEL_VERSION=VALUE" in warning
               for warning in left_open.warnings)  # fmt: skip
    given = translate(text, Options(gpus=8, variables={"MODEL_VERSION": "vicuna-v1-3-7b"}), lambda _: None)
    assert given.manifest == translate_recipe("finetune_qlora").manifest


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model", "no --mm_projector_type: the saved configuration would say linear"),
        ("source", "names the 224 px tower, the checkpoint trains with 336 px: keeping 336"),
        ("imageAspectRatio", "LLaVA would cut the centre out; v1.5's recipe is pad"),
        ("method", "the command trains every weight (no --lora_enable True), yet the text merges a LoRA afterwards"),
        ("learningRate", "that is the recipe of full fine-tuning; LoRA's is 2e-4"),
        ("everySteps", "--save_steps 50000: no checkpoint would ever be written"),
        ("merge", "does not have: --lora-path (meant: --model-path); --output-path (meant: --save-model-path)"),
        ("generation", "eval_model reads sep, top_p, num_beams, which the block does not have"),
        ("generation", "eval_model never reads load_8bit, load_4bit"),
        ("training", "no effect here: --tf32 True"),
    ],
)
def test_every_contradiction_of_the_copied_recipe_is_said_where_it_belongs(key: str, said: str):
    assert said in comments_before(translate_recipe("copied_recipe").text, key)


def test_the_copied_recipe_becomes_the_run_that_was_meant():
    spec = spec_of("copied_recipe")
    assert spec["model"]["visionTower"] == "hf://openai/clip-vit-large-patch14-336"
    assert spec["dataset"]["imageAspectRatio"] == "pad"
    assert spec["training"]["method"] == "lora"
    assert spec["training"]["lora"] == {"rank": 128, "alpha": 256, "dropout": 0.05}
    assert (spec["training"]["learningRate"], spec["training"]["projectorLearningRate"]) == (2e-4, 2e-5)
    assert spec["training"]["checkpoint"]["everySteps"] == 200
    assert spec["evaluation"]["prompts"] == [{"image": "a.png", "text": "What is the total?"}]
    assert spec["evaluation"]["generation"] == {"temperature": 0.2, "maxNewTokens": 512}


def test_literal_takes_the_copied_recipe_by_its_word():
    translation = translate_recipe("copied_recipe", literal=True)
    training = translation.manifest["spec"]["training"]
    assert (training["method"], training["learningRate"], training["projectorLearningRate"]) == ("full", 2e-5, 2e-5)
    assert "lora" not in training
    assert translation.manifest["spec"]["dataset"]["imageAspectRatio"] == "square"
    assert "the merge line would find nothing to merge" in comments_before(translation.text, "method")


def test_claims_that_are_given_leave_nothing_to_replace():
    translation = translate_recipe("finetune_lora", dataset_claim="data/llava", model_claim="models")
    assert "REPLACE" not in translation.text
    spec = translation.manifest["spec"]
    assert spec["dataset"]["source"] == "pvc://data/llava"
    assert spec["model"]["projector"] == "pvc://models/checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin"


def test_what_is_to_be_replaced_is_said_at_the_top():
    assert "Before you apply it, replace what is marked REPLACE." in translate_recipe("finetune_lora").text
