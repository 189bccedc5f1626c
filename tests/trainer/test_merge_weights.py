"""Merging bit for bit against PEFT, from and into every layout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import read_adapter
from llava_trainer.merging.recipes import plan_merge
from tests.trainer.checkpoints import (
    LAYOUTS,
    Layout,
    build_llava,
    edit_weights,
    make_adapter,
    rename,
    save_base,
    save_weights,
)
from tests.trainer.merges import merge_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    make_adapter(build_llava(), folder)
    return folder


def merge(base: Path, adapter: Path, out: Path, dtype: torch.dtype = torch.bfloat16, **options) -> Path:
    out.mkdir()
    merge_weights(base, read_adapter(adapter), out, dtype, **options)
    return out


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def merged_by_peft(base_dtype: torch.dtype, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What PEFT makes of the base in ``dtype`` (its in-place sum is rounded to it once), by hub name."""
    model = build_llava().to(base_dtype).to(torch.promote_types(base_dtype, dtype))
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {rename(name, "hub"): tensor.to(dtype) for name, tensor in merged.state_dict().items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_layout_merges_to_what_peft_merges(
    tmp_path: Path, adapter_dir: Path, layout: Layout, num_shards: int
) -> None:
    save_base(build_llava(), tmp_path / "base", layout=layout, dtype=torch.bfloat16, num_shards=num_shards)
    ours = load_all(merge(tmp_path / "base", adapter_dir, tmp_path / "out"))
    theirs = merged_by_peft(torch.bfloat16, adapter_dir, torch.bfloat16)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("base_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_rounded_once_and_equals_peft(
    tmp_path: Path, adapter_dir: Path, base_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    save_base(build_llava(), tmp_path / "base", dtype=base_dtype)
    ours = load_all(merge(tmp_path / "base", adapter_dir, tmp_path / "out", dtype))
    theirs = merged_by_peft(base_dtype, adapter_dir, dtype)
    assert [name for name in theirs if ours[name].dtype != dtype or not torch.equal(ours[name], theirs[name])] == []


def test_shards_keep_to_the_limit_and_load_as_one_model(tmp_path: Path, adapter_dir: Path) -> None:
    save_base(build_llava(), tmp_path / "base")
    whole = load_all(merge(tmp_path / "base", adapter_dir, tmp_path / "whole"))
    cut = merge(tmp_path / "base", adapter_dir, tmp_path / "cut", max_shard_bytes=20_000)
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    sizes = {file.name: sum(t.nbytes for t in load_file(file).values()) for file in cut.glob("*.safetensors")}
    assert len(sizes) > 3
    assert max(sizes.values()) <= 20_000
    assert set(index["weight_map"].values()) == sizes.keys()
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert {name: load_file(cut / file)[name].tolist() for name, file in index["weight_map"].items()} == {
        name: tensor.tolist() for name, tensor in whole.items()
    }
    shutil.copy(tmp_path / "base" / "config.json", cut)
    model, found = AutoModelForImageTextToText.from_pretrained(cut, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert torch.equal(model.lm_head.weight, whole["language_model.lm_head.weight"].to(model.dtype))


def test_a_tower_that_was_trained_is_missed_by_its_own_name(tmp_path: Path, adapter_dir: Path) -> None:
    save_base(build_llava(), tmp_path / "base")
    learned = ("multi_modal_projector.", "vision_tower.vision_model.embeddings.")
    with pytest.raises(StageError, match=r"does not hold the trained vision_tower\.vision_model\.embeddings\."):
        plan_merge(tmp_path / "base", read_adapter(adapter_dir, learned), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rank_stabilised_scaling_equals_peft(tmp_path: Path, dtype: torch.dtype) -> None:
    make_adapter(build_llava(), tmp_path / "adapter", rank=8, rs_lora=True)
    save_base(build_llava(), tmp_path / "base")
    ours = load_all(merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype))
    theirs = merged_by_peft(torch.float32, tmp_path / "adapter", dtype)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_a_projector_that_nobody_trained_is_not_taken_from_an_adapter(tmp_path: Path, adapter_dir: Path) -> None:
    with pytest.raises(StageError, match=r"holds multi_modal_projector\.\S+, which this run has not trained") as caught:
        read_adapter(adapter_dir, learned=())
    assert caught.value.reason is Reason.MERGE_MISMATCH


def test_a_tensor_larger_than_a_shard_gets_one_of_its_own(tmp_path: Path, adapter_dir: Path) -> None:
    save_base(build_llava(), tmp_path / "base")
    cut = merge(tmp_path / "base", adapter_dir, tmp_path / "cut", max_shard_bytes=1)
    assert len(list(cut.glob("*.safetensors"))) == len(load_all(cut)) == 80


def test_buffers_of_old_checkpoints_keep_their_number_format(tmp_path: Path, adapter_dir: Path) -> None:
    save_base(build_llava(), tmp_path / "base")
    buffers = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(5)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4),
    }
    edit_weights(tmp_path / "base" / "model.safetensors", lambda weights: weights.update(buffers))
    merged = load_all(merge(tmp_path / "base", adapter_dir, tmp_path / "out"))
    assert [merged[name].dtype for name in buffers] == [torch.int64, torch.float32]
    assert all(torch.equal(merged[name], tensor) for name, tensor in buffers.items())


def test_progress_counts_every_tensor(tmp_path: Path, adapter_dir: Path) -> None:
    save_base(build_llava(), tmp_path / "base")
    seen = []
    merge(tmp_path / "base", adapter_dir, tmp_path / "out", on_tensor=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 80) for done in range(1, 81)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True), ("use_rslora", 1), ("lora_bias", True), ("fan_in_fan_out", True), ("bias", "all"),
        ("rank_pattern", {"q_proj": 2}), ("alpha_pattern", {"q_proj": 2}), ("peft_type", "LOHA"),
        ("init_lora_weights", "pissa"), ("layer_replication", [[0, 1]]), ("target_parameters", ["x"]),
        ("trainable_token_indices", [1]), ("layers_to_transform", [0]), ("some_setting_of_tomorrow", 1),
    ],
)  # fmt: skip
def test_what_is_not_plain_lora_is_refused_by_name(tmp_path: Path, adapter_dir: Path, name: str, value: object) -> None:
    shutil.copytree(adapter_dir, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(StageError, match=f"adapter_config.json: {name} is ") as caught:
        read_adapter(tmp_path / "adapter")
    assert caught.value.reason is Reason.MERGE_MISMATCH


Q_PROJ = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
Q_PROJ_7 = Q_PROJ.replace(".0.", ".7.")
LINEAR = "base_model.model.model.multi_modal_projector.linear_1.weight"


def move(weights: dict[str, torch.Tensor], old: str, new: str) -> None:
    weights[new] = weights.pop(old)


def drop_projector(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if "multi_modal_projector" in name]:
        del weights[name]


def drop_lora(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if "lora_" in name]:
        del weights[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"{Q_PROJ}.lora_B.weight"), "q_proj.lora_A.weight without .*q_proj.lora_B.weight"),
        (lambda w: w.pop(f"{Q_PROJ}.lora_A.weight"), "q_proj.lora_B.weight without its lora_A"),
        (lambda w: [w.pop(f"{Q_PROJ}.lora_{m}.weight") for m in "AB"], "no update for language_model.model.layers.0"),
        (drop_lora, "holds no LoRA matrices"),
        (lambda w: w.update({f"{Q_PROJ}.lora_magnitude_vector": torch.ones(32)}), "belongs to no module of modules_"),
        (lambda w: w.update({f"{Q_PROJ}.lora_A.weight": torch.ones(5, 32)}), r"adapter_config.json's r, which is 4"),
        (lambda w: w.update({f"{Q_PROJ}.lora_B.weight": torch.ones(16, 4)}), r"\(16, 32\), but in the base it is"),
        (lambda w: w.update({f"{Q_PROJ}.lora_A.weight": torch.ones(4, 1)}), r"\(32, 1\), but in the base it is \(32, "),
        (lambda w: w.update({LINEAR: torch.ones(32, 8)}), r"\(32, 8\), but in the base it is \(32, 16\)"),
        (drop_projector, "the trained projector was not saved"),
        (lambda w: w.pop(LINEAR), "does not hold the trained multi_modal_projector.linear_1.weight"),
        (lambda w: move(w, LINEAR, "model.multi_modal_projector.linear_1.weight"), "does not begin with base_model"),
        (
            lambda w: [move(w, f"{Q_PROJ}.lora_{m}.weight", f"{Q_PROJ_7}.lora_{m}.weight") for m in "AB"],
            "changes language_model.model.layers.7.self_attn.q_proj.weight, which the base does not hold",
        ),
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_whole_is_refused(tmp_path: Path, adapter_dir: Path, change, message: str) -> None:
    shutil.copytree(adapter_dir, tmp_path / "adapter")
    edit_weights(tmp_path / "adapter" / "adapter_model.safetensors", change)
    save_base(build_llava(), tmp_path / "base")
    with pytest.raises(StageError, match=message) as caught:
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert caught.value.reason is Reason.MERGE_MISMATCH


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_adapter_file_is_named(tmp_path: Path, adapter_dir: Path, name: str) -> None:
    shutil.copytree(adapter_dir, tmp_path / "adapter")
    (tmp_path / "adapter" / name).unlink()
    with pytest.raises(StageError, match=f"{name} is missing"):
        read_adapter(tmp_path / "adapter")


BASE_Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: move(w, BASE_Q_PROJ, "layers.0.self_attn.q_proj.weight"), "not the name of a LLaVA v1.5 tensor"),
        (lambda w: w.update({f"model.{BASE_Q_PROJ}": w[BASE_Q_PROJ].clone()}), "is the same tensor as"),
        (lambda w: w.update({BASE_Q_PROJ: torch.ones(32, 32, dtype=torch.uint8)}), "stored as U8: an adapter is only"),
        (lambda w: w.update({BASE_Q_PROJ: torch.ones(32, 32).to(torch.float8_e4m3fn)}), "stored as F8_E4M3: only"),
        (lambda w: w[BASE_Q_PROJ].fill_(torch.nan), f"{BASE_Q_PROJ} holds values that are not finite"),
    ],
)
def test_a_base_that_cannot_be_merged_into_is_refused(tmp_path: Path, adapter_dir: Path, change, message: str) -> None:
    save_base(build_llava(), tmp_path / "base")
    edit_weights(tmp_path / "base" / "model.safetensors", change)
    with pytest.raises(StageError, match=message) as caught:
        merge(tmp_path / "base", adapter_dir, tmp_path / "out")
    assert caught.value.reason is Reason.INVALID_MODEL


def test_weights_that_are_missing_or_damaged_are_named(tmp_path: Path, adapter_dir: Path) -> None:
    base = tmp_path / "base"
    save_base(build_llava(), base, num_shards=2)
    shard = base / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StageError, match=r"model-00002-of-00002.safetensors cannot be read"):
        merge(base, adapter_dir, tmp_path / "damaged")
    shard.unlink()
    with pytest.raises(StageError, match=r"model-00002-of-00002.safetensors cannot be read"):
        merge(base, adapter_dir, tmp_path / "missing")
    (base / "model.safetensors.index.json").unlink()
    with pytest.raises(StageError, match=r"neither model.safetensors.index.json nor model.safetensors"):
        merge(base, adapter_dir, tmp_path / "none")


def test_a_value_too_large_for_float16_names_the_setting(tmp_path: Path, adapter_dir: Path) -> None:
    save_base(build_llava(), tmp_path / "base", dtype=torch.bfloat16)
    edit_weights(tmp_path / "base" / "model.safetensors", lambda weights: weights[BASE_Q_PROJ].fill_(1e5))
    with pytest.raises(
        StageError, match=r"spec.merge.dtype float16 cannot hold .* largest value is 9.984e\+04.*bfloat16"
    ):
        merge(tmp_path / "base", adapter_dir, tmp_path / "out", torch.float16)


_MERGE_A_LARGE_MODEL = """
import sys
from pathlib import Path
import torch
from llava_trainer.host_memory import peak_resident_bytes, resident_bytes, return_freed_memory
from llava_trainer.merging.changes import read_adapter
from tests.trainer.merges import merge_weights
root = Path(sys.argv[1])
torch.ones(64, 64) @ torch.ones(64, 64)
return_freed_memory()
before = resident_bytes()
merge_weights(root / "base", read_adapter(root / "adapter"), root / "out", torch.bfloat16)
print(peak_resident_bytes() - before)
"""


def test_memory_is_bounded_by_the_largest_tensor_not_by_the_model(tmp_path: Path) -> None:
    """200 MB in one file, tensors of 8 MB: a process of its own merges it and says what it took at most."""
    weights = {f"language_model.model.layers.{n}.mlp.up_proj.weight": torch.rand(2048, 1024) for n in range(24)}
    weights["multi_modal_projector.linear_1.weight"] = torch.rand(1024, 1024)
    for folder in ("base", "adapter", "out"):
        (tmp_path / folder).mkdir()
    save_weights(weights, tmp_path / "base")
    adapter = {"base_model.model.model.multi_modal_projector.linear_1.weight": torch.rand(1024, 1024)}
    for n in range(24):
        module = f"base_model.model.model.language_model.layers.{n}.mlp.up_proj"
        adapter[f"{module}.lora_A.weight"] = torch.rand(8, 1024)
        adapter[f"{module}.lora_B.weight"] = torch.rand(2048, 8)
    save_file(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["up_proj"], modules_to_save=["multi_modal_projector"])
    config.save_pretrained(tmp_path / "adapter")
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MERGE_A_LARGE_MODEL, tmp_path],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    model_bytes = sum(tensor.nbytes for tensor in weights.values())
    assert model_bytes > 200e6
    assert int(told.stdout) < 60e6
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == weights.keys()
