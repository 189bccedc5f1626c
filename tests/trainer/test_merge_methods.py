"""Merging where there is no adapter: language model and projector trained whole, or the projector alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava_api.failures import Reason
from llava_api.report import MergeNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.processor import load_processor
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import read_changes
from llava_trainer.merging.proof import prove_merge
from llava_trainer.merging.reference import find_reference
from llava_trainer.merging.samples import proof_batches
from llava_trainer.model.projector import WEIGHTS_FILE
from llava_trainer.stages import merge
from tests.trainer.checkpoints import edit_weights
from tests.trainer.runs import Recorder, make_run, run_config

METHODS = ("full", "none")


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every weight but the tower's was trained, and whose projector was aligned to something else."""
    root = tmp_path_factory.mktemp("run")
    volume = make_run(root).volume
    torch.manual_seed(5)
    base = load_file(root / "base" / "model.safetensors")
    trained = {name: moved(tensor) for name, tensor in base.items() if not name.startswith("vision_tower.")}
    volume.weights_dir.mkdir()
    volume.projector_dir.mkdir()
    names = sorted(trained)
    save_file({name: trained[name] for name in names[:10]}, volume.weights_dir / "model-00001-of-00002.safetensors")
    save_file({name: trained[name] for name in names[10:]}, volume.weights_dir / "model-00002-of-00002.safetensors")
    projector = {name: moved(tensor) for name, tensor in base.items() if name.startswith("multi_modal_projector.")}
    save_file(projector, volume.projector_dir / WEIGHTS_FILE)
    shutil.rmtree(volume.adapter_dir)
    return root


def moved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 0.05 * torch.randn_like(tensor)


@pytest.fixture
def root(made_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_root, tmp_path / "run"))


def trained_tensors(config: RunConfig) -> dict[str, torch.Tensor]:
    volume = config.volume
    folder = volume.weights_dir if config.training.method == "full" else volume.projector_dir
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def merge_run(root: Path, method: str, **changes: dict) -> tuple[RunConfig, MergeNumbers]:
    config = run_config(root, training={"method": method}, **changes)
    numbers = merge.run(config, Recorder(config)).numbers
    assert isinstance(numbers, MergeNumbers)
    return config, numbers


@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_takes_the_bases_place_and_the_rest_stays(root: Path, method: str):
    config, numbers = merge_run(root, method, merge={"dtype": "float32"})
    trained = trained_tensors(config)
    expected = load_file(root / "base" / "model.safetensors") | trained
    merged = load_file(config.volume.merged_dir / "model.safetensors")
    assert merged.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    assert numbers.tensors_merged == len(trained)
    assert numbers.max_logit_difference < 1e-4
    assert numbers.max_rounding_difference == 0


@pytest.mark.parametrize("method", METHODS)
def test_plain_auto_classes_load_it_and_rounding_is_told(root: Path, method: str):
    config, numbers = merge_run(root, method)
    model, found = AutoModelForImageTextToText.from_pretrained(config.volume.merged_dir, output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert numbers.max_rounding_difference > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_that_leaves_something_untrained_is_caught(root: Path, method: str):
    config, _ = merge_run(root, method)
    base = load_file(root / "base" / "model.safetensors")
    name = sorted(trained_tensors(config))[-1]
    edit_weights(
        config.volume.merged_dir / "model.safetensors", lambda weights: weights.update({name: base[name].bfloat16()})
    )
    batches = proof_batches(config, load_processor(config.model_dir, "pad"))
    with pytest.raises(StageError, match=f"{name} differs from what was trained") as caught:
        prove_merge(find_reference(config), config.volume.merged_dir, batches)
    assert caught.value.reason is Reason.MERGE_MISMATCH


def test_logits_of_another_configuration_are_caught(root: Path):
    config, _ = merge_run(root, "full")
    file = config.volume.merged_dir / "config.json"
    changed = json.loads(file.read_text())
    changed["text_config"]["rms_norm_eps"] = 1e-2
    file.write_text(json.dumps(changed))
    batches = proof_batches(config, load_processor(config.model_dir, "pad"))
    with pytest.raises(StageError, match="logits of the merged model and what was trained differ"):
        prove_merge(find_reference(config), config.volume.merged_dir, batches)


@pytest.mark.parametrize(
    ("method", "lost"),
    [("full", "language_model.model.norm.weight"), ("full", "multi_modal_projector.linear_2.bias"),
     ("none", "multi_modal_projector.linear_1.weight")],
)  # fmt: skip
def test_a_tensor_that_training_did_not_leave_is_missed(root: Path, method: str, lost: str):
    config = run_config(root, training={"method": method})
    folder = config.volume.weights_dir if method == "full" else config.volume.projector_dir
    for file in folder.glob("*.safetensors"):
        edit_weights(file, lambda weights: weights.pop(lost, None))
    with pytest.raises(StageError, match=f"does not hold the trained {lost}") as caught:
        merge_run(root, method)
    assert caught.value.reason is Reason.MERGE_MISMATCH


def test_a_tensor_of_another_model_is_refused(root: Path):
    file = run_config(root).volume.weights_dir / "model-00001-of-00002.safetensors"
    edit_weights(
        file, lambda weights: weights.update({"language_model.model.layers.9.mlp.up_proj.weight": torch.ones(1)})
    )
    with pytest.raises(StageError, match=r"changes language_model\.model\.layers\.9\.mlp\.up_proj\.weight, which"):
        merge_run(root, "full")


@pytest.mark.parametrize("method", METHODS)
def test_without_anything_trained_there_is_nothing_to_merge(root: Path, method: str):
    config = run_config(root, training={"method": method})
    shutil.rmtree(config.volume.weights_dir)
    shutil.rmtree(config.volume.projector_dir)
    with pytest.raises(StageError) as caught:
        read_changes(config)
    assert caught.value.reason is Reason.MERGE_MISMATCH
