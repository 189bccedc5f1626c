"""The proof that a merge is right: each way in which it could be wrong, written into the files, must be caught."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import Changes, read_adapter
from llava_trainer.merging.comparison import compare_and_round, kl_divergences, largest_difference
from llava_trainer.merging.learned import check_learned
from llava_trainer.merging.proof import Proof, prove_merge
from llava_trainer.merging.reference import Reference
from tests.trainer.checkpoints import build_llava, edit_weights, make_adapter, save_base
from tests.trainer.merges import merge_weights

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
    return prove_merge(Reference(base_dir=root / "base", adapter_dir=root / "adapter"), root / "merged", batches)


def update_of(adapter: Changes, name: str) -> torch.Tensor:
    return adapter.pairs[name].update()


def base_of(root: Path, name: str) -> torch.Tensor:
    return load_file(root / "base" / "model.safetensors")[name].float()


def test_a_right_merge_is_proven(root: Path) -> None:
    proof = prove(root)
    assert (proof.num_tensors, proof.num_varying) == (80, 0)
    assert (proof.num_samples, proof.num_positions) == (3, 60)
    assert 0 < proof.max_logit_difference < 1e-5
    exact = load_file(root / "merged" / "model.safetensors")[Q_PROJ].dtype == torch.float32
    assert proof.max_rounding_difference == 0 if exact else 1e-3 < proof.max_rounding_difference < 0.5
    if exact:
        assert proof.max_kl_divergence == 0
    else:
        assert 0 < proof.mean_kl_divergence < proof.max_kl_divergence < 1e-3


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


ADAPTER_B = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_B.weight"


def change_adapter(root: Path, change: Callable[[Weights], object]) -> None:
    edit_weights(root / "adapter" / "adapter_model.safetensors", change)


def test_a_layer_that_did_not_learn_is_told(root: Path) -> None:
    """Two models that are equal because nothing was trained prove nothing."""
    check_learned(root / "base", read_adapter(root / "adapter"))
    change_adapter(root, lambda weights: weights[ADAPTER_B].zero_())
    with pytest.raises(StageError, match=f"{ADAPTER_B} of the adapter is all zero") as caught:
        check_learned(root / "base", read_adapter(root / "adapter"))
    assert caught.value.reason is Reason.MERGE_MISMATCH


def test_a_projector_that_did_not_learn_is_told(root: Path) -> None:
    """Though one of its tensors may be as it was."""
    prefix = "base_model.model.model."
    base = load_file(root / "base" / "model.safetensors")
    names = [name for name in base if name.startswith("multi_modal_projector.")]
    change_adapter(root, lambda weights: weights.update({prefix + names[0]: base[names[0]].float()}))
    check_learned(root / "base", read_adapter(root / "adapter"))
    change_adapter(root, lambda weights: weights.update({prefix + name: base[name].float() for name in names}))
    with pytest.raises(StageError, match="the adapter holds the base's own projector: it was not trained"):
        check_learned(root / "base", read_adapter(root / "adapter"))


def rename_layer(weights: Weights) -> None:
    for matrix in "AB":
        name = ADAPTER_B.replace("lora_B", f"lora_{matrix}")
        weights[name.replace(".1.", ".7.")] = weights.pop(name)


def test_an_adapter_tensor_without_a_place_is_told(root: Path) -> None:
    """By PEFT's own names, whatever merging makes of them."""
    change_adapter(root, rename_layer)
    with pytest.raises(StageError, match=r"lacks \S+layers\.1\S+.* no place for: \S+layers\.7\.") as caught:
        prove(root)
    assert caught.value.reason is Reason.INTERNAL_ERROR


def test_the_scale_is_the_one_that_peft_reads(tmp_path: Path) -> None:
    """Rank-stabilised, and then as if it were not."""
    save_base(build_llava(), tmp_path / "base", dtype=torch.bfloat16)
    make_adapter(build_llava(), tmp_path / "adapter", rank=8, rs_lora=True)
    (tmp_path / "merged").mkdir()
    merge_weights(tmp_path / "base", read_adapter(tmp_path / "adapter"), tmp_path / "merged", torch.bfloat16)
    shutil.copy(tmp_path / "base" / "config.json", tmp_path / "merged")
    assert prove(tmp_path).num_varying == 0
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": False}))
    with pytest.raises(StageError, match=r"proj\.weight differs from what was trained"):
        prove(tmp_path)


def test_targets_that_peft_does_not_find_are_told(root: Path) -> None:
    file = root / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": "nowhere"}))
    with pytest.raises(StageError, match=r"the adapter in \S+ cannot be loaded: No modules were targeted") as caught:
        prove(root)
    assert caught.value.reason is Reason.INTERNAL_ERROR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(LAST_VISION), f"lacks {LAST_VISION}: fetch it again"),
        (
            lambda weights: weights.update({LAST_VISION: torch.ones(3)}),
            r"post_layernorm.bias is \(3,\), but config.json",
        ),
    ],
)
def test_a_base_that_changed_since_is_told(root: Path, change: Callable[[Weights], object], message: str) -> None:
    edit_weights(root / "base" / "model.safetensors", change)
    with pytest.raises(StageError, match=message) as caught:
        prove(root)
    assert caught.value.reason is Reason.INVALID_MODEL


def test_a_sum_in_another_order_is_counted_and_more_is_not_passed_over() -> None:
    torch.manual_seed(0)
    exact = torch.randn(64, 33)
    eps = torch.finfo(torch.float32).eps
    found = exact.clone()
    found[3, 4] += 2 * eps * exact.abs().max()
    kept = exact.clone()
    alike = compare_and_round(found, kept, noise=4 * eps)
    assert (alike.num_different, alike.num_varying) == (0, 1)
    assert torch.equal(kept, exact)
    assert compare_and_round(found, exact.clone(), noise=0.0).num_different == 1
    found[5, 6] += 9 * eps * exact.abs().max()
    unlike = compare_and_round(found, exact.clone(), noise=4 * eps)
    assert (unlike.num_different, unlike.num_varying) == (1, 1)
    assert unlike.largest == pytest.approx((found - exact).abs().max().item())


def test_what_is_compared_is_rounded_in_place() -> None:
    exact = torch.tensor([[1.0, 1.001, -3.14159]])
    rounded = exact.bfloat16()
    alike = compare_and_round(rounded, exact, noise=0.0)
    assert (alike.num_different, alike.num_varying, alike.largest) == (0, 0, 0.0)
    assert torch.equal(exact, rounded.float())
    assert compare_and_round(torch.ones(0, 3), torch.ones(0, 3), noise=0.0).num_different == 0


def test_kl_divergence_by_hand() -> None:
    """KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 log(3/2) + 1/4 log(1/2)."""
    exact, other = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    found = kl_divergences([exact + 7], [other])
    assert found.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.0], abs=1e-6)


def test_a_difference_that_is_no_number_is_told() -> None:
    assert math.isnan(largest_difference([torch.tensor([[1.0, math.nan]]), torch.ones(1, 2)], [torch.ones(1, 2)] * 2))
