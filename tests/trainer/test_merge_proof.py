"""The proof that a merge is right: each way in which it could be wrong, written into the files, must be caught."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import Changes, read_adapter
from llava_trainer.merging.proof import Proof, prove_merge
from llava_trainer.merging.recipes import merge_weights
from llava_trainer.model.loading import load_tuned
from tests.trainer.checkpoints import build_llava, edit_weights, make_adapter, save_base

Weights = dict[str, torch.Tensor]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Q_PROJ = "language_model.model.layers.1.self_attn.q_proj.weight"
LAST_VISION = "vision_tower.vision_model.post_layernorm.bias"


@pytest.fixture(scope="module", params=DTYPES)
def merged_root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base in bfloat16, adapter, and their right merge in one of the number formats."""
    root = tmp_path_factory.mktemp(request.param)
    save_base(build_llava(), root / "base", dtype=torch.bfloat16)
    make_adapter(build_llava(), root / "adapter")
    (root / "merged").mkdir()
    merge_weights(root / "base", read_adapter(root / "adapter"), root / "merged", DTYPES[request.param])
    shutil.copy(root / "base" / "config.json", root / "merged")
    return root


@pytest.fixture
def root(merged_root: Path, tmp_path: Path) -> Path:
    """A copy of it to do harm to."""
    return Path(shutil.copytree(merged_root, tmp_path / "run"))


def prove(root: Path) -> Proof:
    torch.manual_seed(3)
    ids = torch.randint(6, 64, (2, 24))
    ids[:, 4:8] = 5
    with_image = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 28, 28)}
    text = torch.randint(6, 64, (1, 12))
    batches = [with_image, {"input_ids": text, "attention_mask": torch.ones_like(text)}]
    reference = partial(load_tuned, root / "base", root / "adapter", torch.float32, "cpu")
    return prove_merge(reference, root / "merged", batches)


def update_of(adapter: Changes, name: str) -> torch.Tensor:
    return adapter.pairs[name].update()


def base_of(root: Path, name: str) -> torch.Tensor:
    return load_file(root / "base" / "model.safetensors")[name].float()


def test_a_right_merge_is_proven(root: Path) -> None:
    proof = prove(root)
    assert proof.num_tensors == 80
    assert proof.num_samples == 3
    assert 0 < proof.max_logit_difference < 1e-5
    exact = load_file(root / "merged" / "model.safetensors")[Q_PROJ].dtype == torch.float32
    assert proof.max_rounding_difference == 0 if exact else 1e-3 < proof.max_rounding_difference < 0.5


def scale_all(weights: Weights, root: Path, factor: float) -> None:
    adapter = read_adapter(root / "adapter")
    for name in adapter.pairs:
        wrong = base_of(root, name) + factor * update_of(adapter, name)
        weights[name] = wrong.to(weights[name].dtype)


def swap_matrices(weights: Weights, root: Path) -> None:
    """What A B instead of B A gives where a matrix is square: the update transposed."""
    update = update_of(read_adapter(root / "adapter"), Q_PROJ)
    weights[Q_PROJ] = (base_of(root, Q_PROJ) + update.T).to(weights[Q_PROJ].dtype)


def miss_layer(weights: Weights, root: Path) -> None:
    weights[Q_PROJ] = base_of(root, Q_PROJ).to(weights[Q_PROJ].dtype)


def leave_projector(weights: Weights, root: Path) -> None:
    for name in [name for name in weights if name.startswith("multi_modal_projector.")]:
        weights[name] = base_of(root, name).to(weights[name].dtype)


def merge_into_neighbour(weights: Weights, root: Path) -> None:
    other = Q_PROJ.replace(".1.", ".0.")
    weights[Q_PROJ], weights[other] = weights[other], weights[Q_PROJ]


def round_twice(weights: Weights, root: Path) -> None:
    """Rounding base and update apart and then their sum, as a merge in low precision does."""
    update = update_of(read_adapter(root / "adapter"), Q_PROJ).to(torch.bfloat16)
    weights[Q_PROJ] = (base_of(root, Q_PROJ).to(torch.bfloat16) + update).to(weights[Q_PROJ].dtype)


def flip_last_bit(weights: Weights, root: Path) -> None:
    """One unit in the last place of one value of a tensor that nothing should have touched."""
    value = weights[LAST_VISION]
    value[3] = torch.nextafter(value[3].float(), torch.tensor(torch.inf)) if value.dtype == torch.float32 else (
        value[3:4].view(torch.int16) + 1
    ).view(torch.bfloat16)[0]  # fmt: skip


FAULTS: dict[str, tuple[Callable[[Weights, Path], object], str]] = {
    "scale twice": (lambda w, root: scale_all(w, root, 2.0), "differs from what was trained"),
    "scale off by a thousandth": (lambda w, root: scale_all(w, root, 1.001), "differs from what was trained"),
    "A and B swapped": (swap_matrices, f"{Q_PROJ} differs from what was trained"),
    "a layer missed": (miss_layer, f"{Q_PROJ} differs from what was trained"),
    "projector untouched": (leave_projector, "multi_modal_projector.linear_1.weight differs from what was trained"),
    "layers exchanged": (merge_into_neighbour, "q_proj.weight differs from what was trained"),
    "rounded twice": (round_twice, f"{Q_PROJ} differs from what was trained"),
    "one bit of a frozen tensor": (flip_last_bit, f"{LAST_VISION} differs from what was trained in 1 of 16 values"),
    "not a number": (lambda w, root: w[LAST_VISION][:1].fill_(torch.nan), f"{LAST_VISION} differs from what"),
    "a tensor lost": (lambda w, root: w.pop(LAST_VISION), f"1 tensors are either not in .*{LAST_VISION}"),
    "a tensor too many": (
        lambda w, root: w.update({"language_model.lm_head.bias": torch.zeros(64)}), "1 tensors are .*lm_head.bias",
    ),
    "another shape": (lambda w, root: w.update({Q_PROJ: w[Q_PROJ][:16]}), rf"{Q_PROJ} is \(16, 32\) on the disk"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_weights_is_caught(root: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    edit_weights(root / "merged" / "model.safetensors", lambda weights: change(weights, root))
    with pytest.raises(StageError, match=message) as caught:
        prove(root)
    assert caught.value.reason is Reason.MERGE_MISMATCH


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text_config", "rms_norm_eps", 1e-3),
        ("text_config", "rope_parameters", {"rope_theta": 500.0, "rope_type": "default"}),
        ("vision_config", "hidden_act", "relu"),
        (None, "vision_feature_layer", -1),
        (None, "projector_hidden_act", "relu"),
    ],
)
def test_right_weights_under_a_wrong_configuration_are_caught(
    root: Path, part: str | None, name: str, value: object
) -> None:
    file = root / "merged" / "config.json"
    config = json.loads(file.read_text())
    (config if part is None else config[part])[name] = value
    file.write_text(json.dumps(config))
    with pytest.raises(StageError, match="logits of the merged model and what was trained differ by") as caught:
        prove(root)
    assert caught.value.reason is Reason.MERGE_MISMATCH


def test_a_configuration_that_loads_fewer_layers_is_caught(root: Path) -> None:
    file = root / "merged" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["num_hidden_layers"] = 1
    file.write_text(json.dumps(config))
    with pytest.raises(StageError, match=r"loading .* as a server does finds 9 unexpected tensors"):
        prove(root)


def test_an_adapter_without_effect_is_no_proof(root: Path) -> None:
    """Two models that are equal because nothing was trained prove nothing."""

    def silence(weights: Weights) -> None:
        for name in weights:
            if "lora_B" in name:
                weights[name].zero_()

    edit_weights(root / "adapter" / "adapter_model.safetensors", silence)
    with pytest.raises(StageError, match="every LoRA B matrix is zero"):
        prove(root)
