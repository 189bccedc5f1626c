"""What each method trains, what it leaves on the volume, and that phase 2 starts from what phase 1 made.

Trainings run in this process on a toy of random weights: that they learn is for test_learning; here tensors are
compared.
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file, save_file

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.spec import LORA_TARGETS, Lora, Quantization
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.errors import StageError
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.importing import ModelParts, import_model
from llava_trainer.model.layout import PROJECTOR, hub_name
from llava_trainer.model.loading import load_model
from llava_trainer.model.lora import add_adapter
from llava_trainer.model.objective import SupervisedLoss
from llava_trainer.model.projector import projector_parameters, read_projector
from llava_trainer.reporting import Reporter
from llava_trainer.stages import align
from llava_trainer.tensors.recipes import TensorRecipe
from llava_trainer.tensors.writing import INDEX_FILE
from llava_trainer.training import artifacts
from llava_trainer.training.artifacts import publish_weights
from llava_trainer.training.curve import read_curve
from llava_trainer.training.model_under_training import ModelUnderTraining, build_model
from llava_trainer.training.phase import phase_of
from llava_trainer.training.retention import list_checkpoints
from llava_trainer.training.train import train
from tests.trainer.attempts import begin
from tests.trainer.trainings import StopAfter, make_dataset, make_training

CAPTIONS: dict[str, Any] = {"source": "pvc://captions/", "format": "llava", "file": "export.json", "images": "images"}
ALIGNMENT: dict[str, Any] = {"dataset": CAPTIONS, "freshProjector": True, "batch": {"perDevice": 4, "global": 8}}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_dataset(folder)[:16]


@pytest.fixture
def make(tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]]) -> "Make":
    return Make(tmp_path, toy_model_dir, dataset)


class Make:
    """Configurations of one run's stages, its samples on the volume."""

    def __init__(self, root: Path, model_dir: Path, dataset: tuple[Path, list[Sample]]) -> None:
        self._root = root
        self._model_dir = model_dir
        self._folder, self._samples = dataset
        for name in ("dataset", "captions"):
            (root / name).symlink_to(self._folder)

    def __call__(
        self, stage: StageName = StageName.TRAIN, *, alignment: dict[str, Any] | None = None, **training: Any
    ) -> RunConfig:
        config = make_training(self._root, self._model_dir, self._samples, training=training)
        write_samples(config.volume.alignment_file, self._samples)
        fields = config.model_dump(by_alias=True)
        fields["run"]["stage"] = stage
        if alignment:
            fields |= {"alignment": alignment, "alignmentDir": self._root / "captions"}
        return begin(RunConfig.model_validate(fields))


def run(config: RunConfig, world: World) -> None:
    with Reporter(config) as reporter:
        train(config, world, reporter, StopRequest())


def build(config: RunConfig, world: World) -> ModelUnderTraining:
    return build_model(config, phase_of(config), world)


def learning(model: ModelUnderTraining) -> set[str]:
    """Hub names of what learns; LoRA matrices under the names of what they update."""
    names = {name.removeprefix("tuned.") for name in model.named_trainable()}
    plain = (name.replace("modules_to_save.default.", "").partition(".lora_")[0] for name in names)
    return {hub_name(name) for name in plain}


def losses(config: RunConfig) -> list[float]:
    return [entry.loss for entry in read_curve(config.volume.history_file(config.run.stage, config.run.attempt))]


def test_phase_1_trains_the_projector_alone_and_leaves_it(make: Make, toy_model_dir: Path, world: World):
    config = make(StageName.ALIGN, alignment=ALIGNMENT)
    assert learning(build(config, world)) == {
        f"multi_modal_projector.linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")
    }
    run(config, world)
    aligned = read_projector(config.volume.projector_dir)
    base = load_file(toy_model_dir / "model.safetensors")
    assert aligned.keys() == {name for name in base if name.startswith("multi_modal_projector.")}
    assert not any(torch.equal(tensor, base[name]) for name, tensor in aligned.items())
    assert not config.volume.adapter_dir.exists()


def test_a_fresh_projector_is_a_new_one_and_the_same_each_time(make: Make, toy_model_dir: Path, world: World):
    config = make(StageName.ALIGN, alignment=ALIGNMENT)
    first, again = build(config, world).initial_weights, build(config, world).initial_weights
    base = load_file(toy_model_dir / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], base[name]) for name in first)
    # As LLaVA draws it: evenly within 1 / sqrt(inputs).
    weight = first["multi_modal_projector.linear_1.weight"]
    assert 0.9 < weight.abs().max() * weight.shape[1] ** 0.5 <= 1.0


def test_without_that_wish_alignment_keeps_the_models_projector(make: Make, toy_model_dir: Path, world: World):
    """The projector that import has put together with a language model is fresh already."""
    initial_weights = build(make(StageName.ALIGN, alignment={"dataset": CAPTIONS}), world).initial_weights
    base = load_file(toy_model_dir / "model.safetensors")
    assert all(torch.equal(tensor, base[name]) for name, tensor in initial_weights.items())


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_phase_2_starts_from_the_projector_of_phase_1(make: Make, world: World, method: str):
    run(make(StageName.ALIGN, alignment=ALIGNMENT), world)
    config = make(alignment=ALIGNMENT, method=method)
    aligned = read_projector(config.volume.projector_dir)
    live = projector_parameters(build(config, world).llava)
    assert live.keys() == aligned.keys()
    assert all(torch.equal(live[name], aligned[name]) for name in aligned)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_phase_2_of_another_run_starts_from_it_too(
    make: Make, toy_model_dir: Path, tmp_path: Path, world: World, method: str
):
    """The second run names the first one's projector in spec.model.projector, and has no alignment."""
    first = make(StageName.ALIGN, alignment=ALIGNMENT)
    run(first, world)
    parts = ModelParts(source=toy_model_dir, projector=first.volume.projector_dir)
    imported = import_model(parts, tmp_path / "second" / "model")
    second = make(method=method).model_copy(update={"model_dir": imported.model_dir})
    aligned = read_projector(first.volume.projector_dir)
    live = projector_parameters(build(second, world).llava)
    assert all(torch.equal(live[name], aligned[name]) for name in aligned)


def test_phase_2_refuses_to_start_without_it(make: Make, world: World):
    with pytest.raises(StageError, match="left no projector"):
        build(make(alignment=ALIGNMENT), world)


@pytest.mark.parametrize("field", ["source", "projector"])
def test_an_aligned_projector_is_not_aligned_again_unasked(make: Make, field: str):
    config = make(StageName.ALIGN, alignment={"dataset": CAPTIONS})
    given = config.model_copy(update={"model": config.model.model_copy(update={field: "pvc://models/llava"})})
    with pytest.raises(StageError, match=rf"spec\.model\.{field} pvc://models/llava has a projector") as caught:
        align.refuse_aligned(given)
    assert caught.value.reason is Reason.INVALID_CONFIG
    align.refuse_aligned(config)
    align.refuse_aligned(given.model_copy(update={"alignment": make(alignment=ALIGNMENT).alignment}))


def test_full_trains_everything_but_the_tower_and_leaves_all_of_it(make: Make, toy_model_dir: Path, world: World):
    config = make(method="full", learningRate=1e-3, epochs=3)
    base = load_file(toy_model_dir / "model.safetensors")
    trained = {name for name in base if not name.startswith("vision_tower.")}
    assert learning(build(config, world)) == trained
    run(config, world)
    stored = load_file(config.volume.weights_dir / "model.safetensors")
    assert stored.keys() == trained
    # Rows of words that no sample has do not move; every tensor does.
    assert not [name for name in trained if torch.equal(stored[name], base[name])]
    assert not config.volume.adapter_dir.exists()
    assert losses(config)[-1] < losses(config)[0] - 0.5


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_frozen_projector_learns_nothing_and_is_in_nothing_that_is_left(
    make: Make, toy_model_dir: Path, world: World, method: str
):
    """Neither optimiser state nor a checkpoint nor the result; with an adapter just what PEFT makes by itself."""
    config = make(method=method, projector="frozen", epochs=2, checkpoint={"everySteps": 2})
    base = load_file(toy_model_dir / "model.safetensors")
    model = build(config, world)
    assert not [name for name in learning(model) if name.startswith(PROJECTOR)]
    assert not [group.name for group in model.groups if "projector" in group.name]
    run(config, world)
    (checkpoint,) = list_checkpoints(config.volume.checkpoints_dir(StageName.TRAIN, 1))
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["parameters"]
    assert not [name for name in state["parameters"] if PROJECTOR in name]
    if method == "full":
        stored = load_file(config.volume.weights_dir / "model.safetensors")
        assert stored.keys() == {name for name in base if name.startswith("language_model.")}
        return
    for folder in (checkpoint / "adapter", config.volume.adapter_dir):
        stored = load_file(folder / "adapter_model.safetensors")
        assert len(stored) == 2 * 3 * 7
        assert all(".lora_A." in name or ".lora_B." in name for name in stored)
        assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] is None
        assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    tuned = PeftModel.from_pretrained(load_model(toy_model_dir, torch.float32, "cpu"), str(config.volume.adapter_dir))
    projector = projector_parameters(tuned.get_base_model())
    assert all(torch.equal(parameter, base[name]) for name, parameter in projector.items())


TOWER = {"visionTower": {"mode": "full", "learningRate": 1e-3}}
BEHIND = ("vision_tower.vision_model.encoder.layers.2.", "vision_tower.vision_model.post_layernorm.")
"""The toy's features are those of the layer before its third and last."""


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_tower_learns_up_to_its_features_and_is_in_all_that_is_left(
    make: Make, toy_model_dir: Path, world: World, method: str
):
    config = make(method=method, epochs=2, checkpoint={"everySteps": 2}, gradientCheckpointing=True, **TOWER)
    base = load_file(toy_model_dir / "model.safetensors")
    seen = {name for name in base if name.startswith("vision_tower.") and not name.startswith(BEHIND)}
    model = build(config, world)
    assert {name for name in learning(model) if name.startswith("vision_tower.")} == seen
    rates = {
        group.name: (group.learning_rate, len(group.parameters)) for group in model.groups if "tower" in group.name
    }
    # A layer has six matrices; a class token, a convolution and positions come before.
    assert rates == {"vision_tower": (1e-3, 2 * 6 + 3), "vision_tower_norm": (1e-3, 2 * 10 + 2)}
    run(config, world)
    (checkpoint,) = list_checkpoints(config.volume.checkpoints_dir(StageName.TRAIN, 1))
    state = json.loads((checkpoint / "state.json").read_text())
    assert len([name for name in state["parameters"] if "vision_tower" in name]) == len(seen)
    if method == "full":
        stored = load_file(config.volume.weights_dir / "model.safetensors")
        assert {name for name in stored if name.startswith("vision_tower.")} == seen
        assert not [name for name in seen if torch.equal(stored[name], base[name])]
        return
    for folder in (checkpoint / "adapter", config.volume.adapter_dir):
        plain = PeftModel.from_pretrained(load_model(toy_model_dir, torch.float32, "cpu"), str(folder)).get_base_model()
        live = {hub_name(bare(name)): parameter for name, parameter in plain.named_parameters() if is_used(name)}
        assert {name for name in base if name.startswith("vision_tower.")} <= live.keys()
        assert not [name for name in seen if torch.equal(live[name], base[name])]
        assert all(torch.equal(live[name], base[name]) for name in base if name.startswith(BEHIND))


def bare(name: str) -> str:
    return name.replace("modules_to_save.default.", "")


def is_used(name: str) -> bool:
    """Of what PEFT holds of the tower, what it computes with."""
    return "vision_tower" in name and "original_module." not in name


def test_only_what_is_seen_of_a_tower_is_in_the_graph_and_computed_again(make: Make, world: World):
    model = build(make(method="full", gradientCheckpointing=True, **TOWER), world)
    tower = model.llava.model.vision_tower
    states = tower(torch.zeros(1, 3, 56, 56), output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [True, True, True, False]
    assert tower.training
    assert [layer.gradient_checkpointing for layer in tower.encoder.layers][:2] == [True, True]
    frozen = build(make(method="full", gradientCheckpointing=True), world).llava.model.vision_tower
    states = frozen(torch.zeros(1, 3, 56, 56), output_hidden_states=True).hidden_states
    assert not any(state.requires_grad for state in states)
    assert (frozen.training, frozen.encoder.layers[0].gradient_checkpointing) == (False, False)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_tower_that_computes_again_learns_the_same(make: Make, world: World, method: str):
    trained = []
    for recomputes in (False, True):
        config = make(method=method, gradientCheckpointing=recomputes, **TOWER)
        run(config, world)
        trained.append(losses(config))
        shutil.rmtree(config.volume.attempt_dir(StageName.TRAIN, 1))
    assert trained[0] == pytest.approx(trained[1], abs=1e-6)


def test_a_tower_that_has_not_moved_is_not_left_behind(make: Make, world: World):
    """At a rate that leaves zeros what they are, too: biases."""
    for method in ("lora", "full"):
        config = make(method=method, visionTower={"mode": "full", "learningRate": 1e-60})
        with pytest.raises(StageError, match="as it was before training") as caught:
            run(config, world)
        assert caught.value.reason is Reason.ADAPTER_UNCHANGED
        assert "vision_tower" in caught.value.message or "vision tower" in caught.value.message


def test_alignment_leaves_the_tower_alone(make: Make, world: World):
    model = build(make(StageName.ALIGN, alignment=ALIGNMENT, **TOWER), world)
    assert not [name for name in learning(model) if "vision_tower" in name]
    assert not model.phase.learns_tower


def test_phase_1_trains_a_projector_that_phase_2_leaves_alone(make: Make, world: World):
    config = make(StageName.ALIGN, alignment=ALIGNMENT, projector="frozen", maxSteps=1, minimumLearningRate=1e-4)
    run(config, world)
    aligned = read_projector(config.volume.projector_dir)
    assert len(losses(config)) == 2, "16 samples in batches of 8, once: alignment has epochs of its own"
    assert phase_of(config).training.minimum_learning_rate == 0
    assert phase_of(config).learns_projector
    again = make(alignment=ALIGNMENT, projector="frozen")
    live = projector_parameters(build(again, world).llava)
    assert all(torch.equal(live[name], aligned[name]) for name in aligned)
    assert not any(parameter.requires_grad for parameter in live.values())


@pytest.mark.parametrize(
    ("targets", "pattern"),
    [
        (LORA_TARGETS, r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"),
        (("v_proj", "q_proj"), r"self_attn\.(q|v)_proj"),
        (("down_proj",), r"mlp\.(down)_proj"),
        (("up_proj", "o_proj"), r"(self_attn\.(o)_proj|mlp\.(up)_proj)"),
    ],
)
def test_an_adapter_is_where_it_is_asked_for(make: Make, world: World, targets: tuple[str, ...], pattern: str):
    config = make(lora={"rank": 4, "alpha": 8, "targets": targets}, projector="frozen")
    model = build(config, world)
    assert model.tuned.active_peft_config.target_modules == rf"model\.language_model\.layers\.\d+\.{pattern}"
    assert {name.rpartition(".")[2] for name in learning(model)} == set(targets)
    assert len(learning(model)) == 3 * len(targets)


def test_rank_stabilised_lora_is_scaled_by_the_root_of_the_rank_and_says_so(make: Make, world: World):
    config = make(lora={"rank": 16, "alpha": 8, "dropout": 0.0, "rsLora": True})
    run(config, world)
    layer = build(config, world).llava.model.language_model.layers[0].mlp.up_proj
    assert layer.scaling == {"default": 8 / 4}
    told = json.loads((config.volume.adapter_dir / "adapter_config.json").read_text())
    assert (told["use_rslora"], told["r"], told["lora_alpha"]) == (True, 16, 8)


def test_training_ends_after_the_steps_that_are_given_and_goes_on_to_there(make: Make, world: World):
    """5 steps of a dataset of 2: in the third epoch, at the end of the cosine, with or without a stop between."""
    config = make(maxSteps=5, epochs=1, warmupRatio=0.0, minimumLearningRate=4e-3)
    run(config, world)
    whole = read_curve(config.volume.history_file(StageName.TRAIN, 1))
    assert [(point.step, point.epoch) for point in whole] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0), (5, 2.5)]
    assert whole[0].learning_rate == 1e-2
    assert whole[-1].learning_rate == pytest.approx(4e-3 + 6e-3 * 0.5 * (1 + math.cos(math.pi * 4 / 5)))
    shutil.rmtree(config.volume.attempt_dir(StageName.TRAIN, 1))
    begin(config)
    with pytest.raises(StageError, match="after step 3 of 5; the checkpoint of step 3 is on the volume"):
        train(config, world, Reporter(config), StopAfter(3))
    again = begin(config.model_copy(update={"run": config.run.model_copy(update={"attempt": 2})}))
    run(again, world)
    assert losses(again) == [point.loss for point in whole]


def test_weights_in_several_files_are_all_there_and_read_back(
    make: Make, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
):
    llava = build(make(method="full"), world).llava
    folder = tmp_path / "weights"
    publish_weights(llava, folder, is_first=True, max_shard_bytes=500_000)
    files = sorted(folder.glob("*.safetensors"))
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    live = {hub_name(name): parameter for name, parameter in llava.named_parameters() if parameter.requires_grad}
    assert len(files) > 3
    assert set(json.loads((folder / INDEX_FILE).read_text())["weight_map"]) == stored.keys() == live.keys()
    assert all(torch.equal(stored[name], live[name]) for name in live)
    # What is written is not what it should be: the norm before the head is lost on the way.
    monkeypatch.setattr(artifacts, "write_checkpoint", save_lossily)
    with pytest.raises(StageError, match=r"language_model\.model\.norm\.weight is not what was trained \(1 in all\)"):
        publish_weights(llava, tmp_path / "other", is_first=True)
    assert not (tmp_path / "other").exists()


def save_lossily(folder: Path, recipes: Sequence[TensorRecipe], **settings: Any) -> None:
    tensors = {recipe.name: recipe.make() for recipe in recipes}
    tensors["language_model.model.norm.weight"] *= 0
    save_file(tensors, folder / "model.safetensors")


def test_qlora_quantises_the_language_models_layers_and_nothing_else(make: Make, world: World):
    model = build(make(method="qlora"), world)
    quantised = {name for name, module in model.llava.named_modules() if isinstance(module, Linear4bit)}
    projections = [f"self_attn.{name}_proj" for name in "qkvo"] + [
        f"mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    assert quantised == {
        f"model.language_model.layers.{layer}.{name}.base_layer" for layer in range(3) for name in projections
    }
    weight = model.llava.model.language_model.layers[0].mlp.up_proj.base_layer.weight
    assert (weight.quant_type, weight.quant_state.nested) == ("nf4", True)
    assert {parameter.dtype for parameter in model.named_trainable().values()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.llava.model.vision_tower.parameters())


def test_quantised_layers_stay_as_training_has_them_while_held_out_samples_are_looked_at(make: Make, world: World):
    """On a CPU with AVX512-BF16 they would lay their weights out for inference alone, and not undo it."""
    model = build(make(method="qlora", lora={"rank": 4, "alpha": 8, "dropout": 0.1}), world)
    model.module.eval()
    switched = {type(module) for module in model.llava.model.language_model.modules() if not module.training}
    kept = {type(module) for module in model.llava.model.language_model.modules() if module.training}
    assert kept == {Linear4bit}
    assert Linear4bit not in switched
    assert torch.nn.Dropout in switched, "the adapter's own"
    model.module.train()
    assert all(module.training for module in model.llava.model.language_model.modules())


def test_qlora_can_leave_the_scales_as_they_are_and_multiply_in_bf16(make: Make, world: World):
    config = make(method="qlora", quantization={"double": False, "computeDtype": "bf16"})
    layer = build(config, world).llava.model.language_model.layers[0].mlp.up_proj.base_layer
    assert (layer.weight.quant_state.nested, layer.compute_dtype) == (False, torch.bfloat16)


def test_qlora_in_bf16_leaves_every_weight_as_it_was_loaded(toy_model_dir: Path):
    """Nothing is turned into fp32, as PEFT's preparation for quantised models would, and the tower builds no graph."""
    llava = load_model(toy_model_dir, torch.bfloat16, "cpu", quantization=Quantization())
    module = SupervisedLoss(add_adapter(llava, Lora(rank=4, alpha=8)).get_base_model(), gradient_checkpointing=True)
    assert {str(parameter.dtype) for parameter in llava.parameters()} == {"torch.bfloat16", "torch.uint8"}
    features = llava.model.vision_tower(torch.zeros(1, 3, 56, 56, dtype=torch.bfloat16)).last_hidden_state
    assert not features.requires_grad
    module.train()
    assert not llava.model.vision_tower.training
    exempt = (llava.lm_head, llava.model.vision_tower, llava.model.multi_modal_projector)
    assert not any(isinstance(layer, Linear4bit) for part in exempt for layer in part.modules())


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_learn_and_plain_peft_reads_them_over_the_unquantised_base(
    make: Make, toy_model_dir: Path, world: World, method: str
):
    """The final one and every checkpoint's, each with its projector."""
    config = make(method=method, epochs=4, gradientCheckpointing=True, checkpoint={"everySteps": 4})
    run(config, world)
    assert losses(config)[-1] < losses(config)[0] - 0.5
    (checkpoint,) = list_checkpoints(config.volume.checkpoints_dir(StageName.TRAIN, 1))
    seen = []
    for folder in (checkpoint / "adapter", config.volume.adapter_dir):
        base = load_model(toy_model_dir, torch.float32, "cpu")
        tuned = PeftModel.from_pretrained(base, str(folder))
        stored = load_file(folder / "adapter_model.safetensors")
        lora = {name: parameter for name, parameter in tuned.named_parameters() if "lora_" in name}
        assert len(lora) == 2 * 3 * 7
        assert all(torch.equal(tensor, stored[name.replace(".default", "")]) for name, tensor in lora.items())
        projector = projector_parameters(tuned.get_base_model())
        assert all(torch.equal(p, stored[f"base_model.model.model.{name}"]) for name, p in projector.items())
        seen.append(projector["multi_modal_projector.linear_1.weight"])
    original = load_file(toy_model_dir / "model.safetensors")["multi_modal_projector.linear_1.weight"]
    assert not torch.equal(seen[0], original)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(("stage", "method"), [(StageName.ALIGN, "lora"), (StageName.TRAIN, "full")])
def test_what_has_not_learned_is_not_left_behind(make: Make, world: World, stage: StageName, method: str):
    """A step as small as this one leaves every weight the number that it was."""
    batch = {"perDevice": 16, "global": 16}
    config = make(
        stage, alignment={**ALIGNMENT, "batch": batch, "learningRate": 1e-30}, method=method, batch=batch,
        learningRate=1e-30, projectorLearningRate=1e-30,
    )  # fmt: skip
    if stage is StageName.TRAIN:
        config = config.model_copy(update={"alignment": None})
    with pytest.raises(StageError, match="is as it was before training") as caught:
        run(config, world)
    assert caught.value.reason is Reason.ADAPTER_UNCHANGED
    assert not config.volume.projector_dir.exists()
    assert not config.volume.weights_dir.exists()


def test_alignment_goes_on_where_it_was_stopped(make: Make, world: World):
    """As training does; its checkpoints are its own, and each holds the projector as a folder to start from."""
    config = make(StageName.ALIGN, alignment=ALIGNMENT | {"epochs": 2})
    run(config, world)
    expected, curve = read_projector(config.volume.projector_dir), losses(config)
    shutil.rmtree(config.volume.projector_dir)
    shutil.rmtree(config.volume.attempt_dir(StageName.ALIGN, 1))
    begin(config)
    with pytest.raises(StageError, match="the checkpoint of step 2 is on the volume"):
        train(config, world, Reporter(config), StopAfter(2))
    (checkpoint,) = list_checkpoints(config.volume.checkpoints_dir(StageName.ALIGN, 1))
    part_way = read_projector(checkpoint / "projector")
    again = begin(config.model_copy(update={"run": config.run.model_copy(update={"attempt": 2})}))
    run(again, world)
    assert losses(again) == curve
    aligned = read_projector(again.volume.projector_dir)
    assert all(torch.equal(aligned[name], expected[name]) for name in expected)
    assert part_way.keys() == aligned.keys()
    assert not any(torch.equal(part_way[name], aligned[name]) for name in aligned)
