"""Loading checkpoints and adapters, what of a model learns, and its loss."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_api.spec import Lora
from llava_trainer.data.encode import IGNORED
from llava_trainer.errors import StageError
from llava_trainer.inputs import BaseModel
from llava_trainer.model.adapter_folder import WEIGHTS_FILE
from llava_trainer.model.learning import group_parameters
from llava_trainer.model.loading import load_model, load_tuned
from llava_trainer.model.lora import add_adapter
from llava_trainer.model.objective import SupervisedLoss
from llava_trainer.training.adapter import check_saved, collect_adapter, name_base, publish_adapter
from tests.trainer.checkpoints import LAYOUTS, build_llava, rename, save_base

CPU = torch.device("cpu")
IMAGE_TOKEN = 5
LORA = Lora(rank=4, alpha=8, dropout=0.0)


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    save_base(build_llava(), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter_dir(base_dir: Path, tmp_path: Path) -> Path:
    publish_adapter(make_tuned(base_dir), tmp_path / "adapter")
    return tmp_path / "adapter"


def load(folder: Path) -> LlavaForConditionalGeneration:
    return load_model(folder, torch.float32, CPU)


def make_tuned(base_dir: Path) -> PeftModel:
    """A model with an adapter and a projector that have learned something."""
    torch.manual_seed(1)
    tuned = add_adapter(load(base_dir), LORA)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return tuned.eval()


def make_batch(*, images: bool = True, seed: int = 0) -> dict[str, torch.Tensor | None]:
    """Two samples of 12 tokens; the second has 2 padded away. The last 4 of the first and 3 of the second count."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 60, (2, 12), generator=generator)
    if images:
        ids[:, 2:6] = IMAGE_TOKEN
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    labels = torch.full_like(ids, IGNORED)
    labels[0, 8:] = ids[0, 8:]
    labels[1, 7:10] = ids[1, 7:10]
    pixels = torch.randn(2, 3, 28, 28, generator=generator) if images else None
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}


def make_inputs(*, images: bool = True) -> dict[str, torch.Tensor | None]:
    """The same, as the loss is called: without a mask."""
    return {name: tensor for name, tensor in make_batch(images=images).items() if name != "attention_mask"}


def logits_of(model: torch.nn.Module, batch: dict[str, torch.Tensor | None]) -> torch.Tensor:
    with torch.no_grad():
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_all_ways_to_name_tensors_load_the_same_model(tmp_path: Path, layout, num_shards: int):
    expected = build_llava()
    save_base(expected, tmp_path / "base", layout=layout, num_shards=num_shards)
    loaded = load(tmp_path / "base")
    assert torch.equal(logits_of(loaded, make_batch()), logits_of(expected, make_batch()))
    assert not loaded.training


def test_an_adapter_that_is_copied_out_finds_its_base_on_the_hub(base_dir: Path, tmp_path: Path):
    commit = "c" * 40
    cache = tmp_path / "cache" / "models--me--tiny"
    (cache / "snapshots").mkdir(parents=True)
    shutil.copytree(base_dir, cache / "snapshots" / commit)
    tuned = make_tuned(base_dir)
    name_base(tuned, BaseModel(name="me/tiny", revision=commit))
    publish_adapter(tuned, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/tiny", commit)
    # From what was fetched of the hub before, since a test has none.
    found = AutoPeftModel.from_pretrained(tmp_path / "adapter", cache_dir=cache.parent, local_files_only=True).eval()
    assert torch.equal(logits_of(found, make_batch()), logits_of(tuned, make_batch()))
    assert str(tmp_path) not in json.dumps(config)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop(rename("lm_head.weight", "hub")), "lacks lm_head.weight"),
        (lambda tensors: tensors.update({"language_model.extra": torch.zeros(1)}), "unexpected .*language_model.extra"),
        (
            lambda tensors: tensors.update({rename("lm_head.weight", "hub"): torch.zeros(3, 32)}),
            "shape .*lm_head.weight",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_tensors_that_do_not_fit_are_named(base_dir: Path, edit, message: str):
    file = base_dir / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(StageError, match=message) as caught:
        load(base_dir)
    assert caught.value.reason is Reason.INVALID_MODEL


def test_buffers_of_old_checkpoints_do_no_harm(base_dir: Path):
    file = base_dir / "model.safetensors"
    derived = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    save_file(load_file(file) | derived, file, metadata={"format": "pt"})
    assert load(base_dir).dtype == torch.float32


def test_pickled_weights_are_not_opened(base_dir: Path):
    (base_dir / "model.safetensors").unlink()
    torch.save({}, base_dir / "pytorch_model.bin")
    with pytest.raises(StageError, match="safetensors") as caught:
        load(base_dir)
    assert caught.value.reason is Reason.INVALID_MODEL


def test_damaged_weights_are_refused(base_dir: Path):
    (base_dir / "model.safetensors").write_bytes(b"not what it was")
    with pytest.raises(StageError, match="cannot be loaded") as caught:
        load(base_dir)
    assert caught.value.reason is Reason.INVALID_MODEL


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/gloo/transport/tcp/pair.cc:456] Connection closed by peer"),
        dist.DistBackendError("NCCL communicator was aborted"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError(
            "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_checkpoint_is_not_blamed_for_what_others_did(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
):
    # Under ZeRO-3 weights are handed to the other ranks while they are read.
    def lose(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", lose)
    with pytest.raises(type(error)) as caught:
        load(base_dir)
    assert caught.value is error


def test_only_the_language_models_layers_and_the_projector_learn(base_dir: Path):
    tuned = add_adapter(load(base_dir), LORA)
    learning = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    layers = [
        f"base_model.model.model.language_model.layers.{layer}.{module}.lora_{matrix}.default.weight"
        for layer in range(2)
        for module in (*(f"self_attn.{name}_proj" for name in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        for matrix in "AB"
    ]
    projector = [
        f"base_model.model.model.multi_modal_projector.modules_to_save.default.linear_{layer}.{kind}"
        for layer in (1, 2)
        for kind in ("weight", "bias")
    ]
    assert learning == {*layers, *projector}


def test_groups_have_their_own_learning_rate_and_biases_do_not_decay(base_dir: Path):
    tuned = add_adapter(load(base_dir), LORA)
    sorted_out = group_parameters(tuned, learning_rate=2e-4, projector_learning_rate=2e-5, weight_decay=0.1)
    groups = {group.name: group for group in sorted_out}
    assert {name: (g.learning_rate, g.weight_decay) for name, g in groups.items()} == {
        "language_model": (2e-4, 0.1),
        "projector": (2e-5, 0.1),
        "projector_bias": (2e-5, 0.0),
    }
    assert {name: len(group.parameters) for name, group in groups.items()} == {
        "language_model": 28,
        "projector": 2,
        "projector_bias": 2,
    }


def test_plain_peft_restores_adapter_and_projector(base_dir: Path, adapter_dir: Path):
    expected = logits_of(make_tuned(base_dir), make_batch())
    plain = PeftModel.from_pretrained(LlavaForConditionalGeneration.from_pretrained(base_dir), adapter_dir).eval()
    assert torch.equal(logits_of(plain, make_batch()), expected)
    assert torch.equal(logits_of(load_tuned(base_dir, adapter_dir, torch.float32, CPU), make_batch()), expected)
    assert not torch.allclose(logits_of(load(base_dir), make_batch()), expected, atol=0.1)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in adapter_dir.iterdir()} == {
        "adapter_config.json": "0o644",
        "adapter_model.safetensors": "0o644",
    }


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda name, tensor: (name, torch.zeros_like(tensor) if "lora_B" in name else tensor), "B matrix is zero"),
        (
            lambda name, tensor: (name.replace("layers.1.", "layers.7."), tensor),
            "lacks .*layers.1.*no place for.*layers.7",
        ),
    ],
    ids=["zero", "renamed"],
)
def test_an_adapter_without_effect_is_refused(base_dir: Path, adapter_dir: Path, edit, message: str):
    file = adapter_dir / "adapter_model.safetensors"
    save_file(dict(edit(name, tensor) for name, tensor in load_file(file).items()), file, metadata={"format": "pt"})
    expected_warning = pytest.warns(UserWarning, match="missing adapter keys") if "lacks" in message else nullcontext()
    with expected_warning, pytest.raises(StageError, match=message) as caught:
        load_tuned(base_dir, adapter_dir, torch.float32, CPU)
    assert caught.value.reason is Reason.INTERNAL_ERROR


def test_a_projector_that_nobody_had_to_train_is_loaded(base_dir: Path, adapter_dir: Path):
    file = adapter_dir / "adapter_model.safetensors"
    untrained = load(base_dir).model.multi_modal_projector.state_dict()
    prefix = "base_model.model.model.multi_modal_projector."
    save_file(load_file(file) | {prefix + name: tensor for name, tensor in untrained.items()}, file)
    tuned = load_tuned(base_dir, adapter_dir, torch.float32, CPU)
    assert not torch.allclose(logits_of(tuned, make_batch()), logits_of(load(base_dir), make_batch()), atol=1e-3)


def test_a_missing_adapter_is_refused(base_dir: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match="cannot be loaded"):
        load_tuned(base_dir, tmp_path / "empty", torch.float32, CPU)


def test_an_adapter_is_only_published_if_it_learned_and_arrived(base_dir: Path, tmp_path: Path):
    untrained = add_adapter(load(base_dir), LORA)
    with pytest.raises(StageError, match="B matrix is zero"):
        publish_adapter(untrained, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    tuned = make_tuned(base_dir)
    publish_adapter(tuned, tmp_path / "adapter")
    with torch.no_grad():
        next(parameter for parameter in tuned.parameters() if parameter.requires_grad).add_(1.0)
    with pytest.raises(StageError, match="is not what was trained"):
        check_saved(collect_adapter(tuned), tmp_path / "adapter" / WEIGHTS_FILE)
    lora_only = make_tuned(base_dir)
    wrapper = lora_only.get_base_model().model.multi_modal_projector
    wrapper.modules_to_save["default"].load_state_dict(wrapper.original_module.state_dict())
    with pytest.raises(StageError, match="projector is as it was") as caught:
        publish_adapter(lora_only, tmp_path / "other")
    assert caught.value.reason is Reason.ADAPTER_UNCHANGED


def test_publishing_replaces_what_an_earlier_attempt_left(base_dir: Path, adapter_dir: Path):
    (adapter_dir / "left-over").write_text("")
    publish_adapter(make_tuned(base_dir), adapter_dir)
    assert sorted(path.name for path in adapter_dir.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((adapter_dir / "adapter_config.json").read_text())["modules_to_save"] == ["multi_modal_projector"]
    assert not [path for path in adapter_dir.parent.iterdir() if path.name.endswith(".partial")]


def test_the_loss_is_the_sum_over_supervised_tokens(base_dir: Path):
    tuned = make_tuned(base_dir)
    batch = make_batch()
    mean = tuned(**batch).loss
    total = SupervisedLoss(tuned.get_base_model(), gradient_checkpointing=False)(**make_inputs())
    torch.testing.assert_close(total, mean * 7, rtol=1e-6, atol=1e-6)


def test_gradient_checkpointing_computes_the_same_gradients(base_dir: Path):
    gradients = []
    for checkpointing in (False, True):
        module = SupervisedLoss(make_tuned(base_dir).get_base_model(), gradient_checkpointing=checkpointing).train()
        torch.autograd.backward(module(**make_inputs()))
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-6, atol=1e-7)


def test_the_tower_builds_no_graph_even_where_hooks_ask_for_one(base_dir: Path):
    tuned = make_tuned(base_dir)
    llava = tuned.get_base_model()
    llava.enable_input_require_grads()
    module = SupervisedLoss(tuned.get_base_model(), gradient_checkpointing=True).train()
    outputs = []
    llava.model.vision_tower.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    torch.autograd.backward(module(**make_inputs()))
    states = [state for output in outputs for state in output.hidden_states if state is not None]
    assert states
    assert not any(state.requires_grad for state in states)
    assert all(parameter.grad is None for parameter in llava.model.vision_tower.parameters())
    assert not llava.model.vision_tower.training
    assert llava.model.language_model.training


def test_a_batch_without_images_gives_the_projector_a_gradient_of_zero(base_dir: Path):
    tuned = make_tuned(base_dir)
    module = SupervisedLoss(tuned.get_base_model(), gradient_checkpointing=False).train()
    batch = make_batch(images=False)
    loss = module(**make_inputs(images=False))
    torch.testing.assert_close(loss, tuned(**{k: v for k, v in batch.items() if v is not None}).loss * 7)
    torch.autograd.backward(loss)
    projector = tuned.get_base_model().model.multi_modal_projector.modules_to_save["default"]
    assert [parameter.grad.abs().max().item() for parameter in projector.parameters()] == [0.0] * 4


def test_a_batch_without_supervised_tokens_is_zero_and_has_a_graph(base_dir: Path):
    module = SupervisedLoss(make_tuned(base_dir).get_base_model(), gradient_checkpointing=False).train()
    batch = make_inputs()
    loss = module(**batch | {"labels": torch.full_like(batch["labels"], IGNORED)})
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters() if p.requires_grad)


def test_generation_keeps_its_cache_elsewhere(base_dir: Path):
    other = load(base_dir)
    SupervisedLoss(make_tuned(base_dir).get_base_model(), gradient_checkpointing=False)
    assert other.config.text_config.use_cache
