"""A run that goes on from an adapter, or only merges and judges it; and what is refused in its place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.report import MergeNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.errors import StageError
from llava_trainer.evaluation.pairs import QuestionAnswers, pair_rows
from llava_trainer.evaluation.rows import Row
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.importing.adapter import import_adapter
from llava_trainer.inputs import provide_inputs
from llava_trainer.reporting import Reporter
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.stages import evaluate, merge
from llava_trainer.training.adapter import check_moved, collect_adapter
from llava_trainer.training.identity import identify_training
from llava_trainer.training.model_under_training import build_model
from llava_trainer.training.phase import phase_of
from llava_trainer.training.train import train
from tests.trainer.attempts import begin as begin_attempt
from tests.trainer.checkpoints import edit_weights
from tests.trainer.many import run_in_processes
from tests.trainer.runs import dataset_report
from tests.trainer.trainings import make_dataset, make_training

FILE = "adapter_model.safetensors"
GIVEN = {"source": "pvc://base/", "adapter": "pvc://earlier/adapter"}
B = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_B.weight"
PROJECTOR = "base_model.model.model.multi_modal_projector.linear_1.bias"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_dataset(folder)[:20]


def configure(
    root: Path, model_dir: Path, dataset: tuple[Path, list[Sample]], *, model: dict[str, str] | None = None,
    **changes: Any,
) -> RunConfig:  # fmt: skip
    root.mkdir(exist_ok=True)
    folder, samples = dataset
    (root / "dataset").symlink_to(folder)
    config = make_training(
        root, model_dir, samples[:16],
        **{"evaluation": {"gpus": 0, "generation": {"maxNewTokens": 4}}, "merge": {"dtype": "float32"}, **changes},
    )  # fmt: skip
    write_samples(config.volume.validation_file, samples[16:])
    config.volume.dataset_report_json.write_text(dataset_report(held_out=4, trained_on=16).model_dump_json())
    return RunConfig.model_validate(config.model_dump(by_alias=True) | {"model": model or {}})


def as_stage(config: RunConfig, stage: StageName) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"stage": stage})})


def finish(config: RunConfig) -> tuple[dict[str, torch.Tensor], tuple[QuestionAnswers, ...], Metrics]:
    """Merge and evaluate; the merged weights, the answers and the metrics."""
    numbers = merge.run(as_stage(config, StageName.MERGE), Reporter(config)).numbers
    assert isinstance(numbers, MergeNumbers)
    assert numbers.max_logit_difference < 1e-4
    evaluate.run(begin_attempt(as_stage(config, StageName.EVALUATE)), Reporter(config))
    volume = config.volume
    rows = [Row.model_validate_json(line) for line in volume.answers_file.read_text().splitlines()]
    answers = pair_rows(rows)
    merged = load_file(volume.merged_dir / "model.safetensors")
    return merged, answers, Metrics.model_validate_json(volume.metrics_file.read_bytes())


@pytest.fixture(scope="module")
def earlier(
    tmp_path_factory: pytest.TempPathFactory, toy_model_dir: Path, dataset: tuple[Path, list[Sample]], world: World
) -> RunConfig:
    """A run that has trained an adapter."""
    config = configure(tmp_path_factory.mktemp("runs") / "earlier", toy_model_dir, dataset)
    train(config, world, Reporter(config), StopRequest())
    return config


@pytest.fixture(scope="module")
def judged(earlier: RunConfig) -> tuple[dict[str, torch.Tensor], tuple[QuestionAnswers, ...], Metrics]:
    return finish(earlier)


def give(config: RunConfig, adapter_dir: Path) -> None:
    import_adapter(adapter_dir, config.model_dir, config.training, config.volume.given_adapter_dir)


# --- going on


def test_training_goes_on_from_the_adapter_and_is_compared_with_it(
    tmp_path: Path, earlier: RunConfig, judged: Any, dataset: tuple[Path, list[Sample]], world: World
) -> None:
    config = configure(tmp_path / "run", earlier.model_dir, dataset, model=GIVEN)
    give(config, earlier.volume.adapter_dir)
    given = load_file(earlier.volume.adapter_dir / FILE)
    assert name_others(world, config, earlier.volume.adapter_dir / FILE) == []
    train(config, world, Reporter(config), StopRequest())
    trained = load_file(config.volume.adapter_dir / FILE)
    assert trained.keys() == given.keys()
    assert not any(torch.equal(trained[name], given[name]) for name in given)
    merged, answers, metrics = finish(config)
    _, earlier_answers, earlier_metrics = judged
    assert merged.keys() == load_file(earlier.model_dir / "model.safetensors").keys()
    for answer, before in zip(answers, earlier_answers, strict=True):
        assert answer.bare is not None
        assert (answer.bare.answer, answer.base.answer) == (before.base.answer, before.tuned.answer)
    assert metrics.seconds.keys() == {"answers_of_bare_base", "answers_of_base", "answers_of_tuned"}
    for score, before_score in zip(metrics.scores, earlier_metrics.scores, strict=True):
        assert (score.bare, score.base) == (before_score.base, before_score.tuned)
    page = config.volume.report_file.read_text()
    assert "Base: with the adapter that the run went on from" in page
    assert ">bare " in page
    assert "pvc://earlier/adapter" in page
    assert ">bare " not in earlier.volume.report_file.read_text()


def test_without_training_the_adapter_is_merged_and_judged(
    tmp_path: Path, earlier: RunConfig, judged: Any, dataset: tuple[Path, list[Sample]]
) -> None:
    config = configure(
        tmp_path / "run", earlier.model_dir, dataset, model=GIVEN, training={"method": "none", "lora": {}}
    )
    give(config, earlier.volume.adapter_dir)
    merged, answers, metrics = finish(config)
    weights, earlier_answers, _ = judged
    assert all(torch.equal(merged[name], weights[name]) for name in weights)
    assert all(one.bare is None for one in answers)
    assert [(one.base, one.tuned) for one in answers] == [(one.base, one.tuned) for one in earlier_answers]
    assert metrics.seconds.keys() == {"answers_of_base", "answers_of_tuned"}
    assert "none: the adapter that was given is merged" in config.volume.report_file.read_text()


def test_an_adapter_that_had_no_need_to_train_its_projector_is_judged(
    tmp_path: Path, earlier: RunConfig, judged: Any, dataset: tuple[Path, list[Sample]]
) -> None:
    base = load_file(earlier.model_dir / "model.safetensors")

    def with_the_bases_projector(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        weights |= {f"base_model.model.model.{name}": base[name] for name in base if name.startswith("multi_modal")}

    folder = change(earlier.volume.adapter_dir, tmp_path, with_the_bases_projector)
    config = configure(
        tmp_path / "run", earlier.model_dir, dataset, model=GIVEN, training={"method": "none", "lora": {}}
    )
    give(config, folder)
    merged, answers, _ = finish(config)
    name = "multi_modal_projector.linear_1.bias"
    assert torch.equal(merged[name], base[name])
    assert torch.equal(merged["language_model.model.layers.1.mlp.up_proj.weight"],
                       judged[0]["language_model.model.layers.1.mlp.up_proj.weight"])  # fmt: skip
    assert [one.base for one in answers] == [one.base for one in judged[1]]


def test_a_checkpoint_of_a_training_from_another_adapter_is_none_of_its_own(
    tmp_path: Path, earlier: RunConfig, dataset: tuple[Path, list[Sample]]
) -> None:
    config = configure(tmp_path / "run", earlier.model_dir, dataset, model=GIVEN)
    give(config, earlier.volume.adapter_dir)
    before = identify_training(config, phase_of(config))
    assert before["model"] != identify_training(earlier, phase_of(earlier))["model"]
    edit_weights(config.volume.given_adapter_dir / FILE, lambda weights: weights[B].add_(1.0))
    assert identify_training(config, phase_of(config))["model"] != before["model"]


def begin(world: World, config: RunConfig) -> dict[str, torch.Tensor]:
    return collect_adapter(build_model(config, phase_of(config), world).tuned)  # type: ignore[arg-type]


def name_others(world: World, config: RunConfig, file: Path) -> list[str]:
    """Tensors that training does not begin with as they are in the file."""
    begun, given = begin(world, config), load_file(file)
    return [name for name in begun.keys() | given.keys() if not torch.equal(begun[name], given[name])]


def test_ranks_that_share_parameters_out_begin_with_the_same(
    tmp_path: Path, earlier: RunConfig, dataset: tuple[Path, list[Sample]]
) -> None:
    config = configure(
        tmp_path / "run", earlier.model_dir, dataset, model=GIVEN, training={"zero": {"stage": 3}},
        workers={"processesPerNode": 2},
    )  # fmt: skip
    give(config, earlier.volume.adapter_dir)
    assert run_in_processes(2, name_others, config, earlier.volume.adapter_dir / FILE) == [[], []]


def test_an_adapter_without_a_projector_leaves_it_as_the_bases_to_begin_with(
    tmp_path: Path, earlier: RunConfig, dataset: tuple[Path, list[Sample]], world: World
) -> None:
    folder = change(earlier.volume.adapter_dir, tmp_path, without_projector)
    for projector in ("train", "frozen"):
        config = configure(
            tmp_path / projector, earlier.model_dir, dataset, model=GIVEN, training={"projector": projector}
        )
        give(config, folder)
        begun = begin(world, config)
        base = load_file(earlier.model_dir / "model.safetensors")
        if projector == "frozen":
            assert PROJECTOR not in begun
        else:
            assert torch.equal(begun[PROJECTOR], base["multi_modal_projector.linear_1.bias"])


def test_an_adapter_that_training_left_as_it_was_is_no_result(earlier: RunConfig, tmp_path: Path) -> None:
    file = earlier.volume.adapter_dir / FILE
    weights = load_file(file)
    with pytest.raises(StageError, match="the adapter is as it was given") as caught:
        check_moved(weights, file)
    assert caught.value.reason is Reason.ADAPTER_UNCHANGED
    check_moved(weights | {B: weights[B] + 1}, file)


def test_prepare_takes_it_from_its_claim_and_other_stages_from_the_volume(
    tmp_path: Path, earlier: RunConfig, dataset: tuple[Path, list[Sample]]
) -> None:
    config = configure(tmp_path / "run", earlier.model_dir, dataset, model=GIVEN)
    claims = tmp_path / "claims"
    (claims / "earlier").mkdir(parents=True)
    shutil.copytree(earlier.volume.adapter_dir, claims / "earlier" / "adapter")
    provide_inputs(as_stage(config, StageName.PREPARE), Reporter(config), Surroundings(claims=claims, environ={}))
    given, original = (load_file(one / FILE) for one in (config.volume.given_adapter_dir, earlier.volume.adapter_dir))
    assert all(torch.equal(given[name], original[name]) for name in original)


# --- adapters of others


def change(adapter_dir: Path, root: Path, edit: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """A copy of an adapter with other settings or tensors."""
    folder = root / "changed"
    shutil.copytree(adapter_dir, folder)
    settings, weights = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / FILE)
    edit(settings, weights)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(weights, folder / FILE)
    return folder


def without_projector(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    settings["modules_to_save"] = None
    for name in [name for name in weights if "multi_modal_projector" in name]:
        del weights[name]


def of_older_transformers(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    settings["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for name in list(weights):
        old = name.replace("model.model.language_model.", "model.language_model.model.")
        weights[old.replace("model.model.multi_modal", "model.multi_modal")] = weights.pop(name)


def test_names_of_older_versions_are_written_anew(tmp_path: Path, earlier: RunConfig) -> None:
    folder = change(earlier.volume.adapter_dir, tmp_path, of_older_transformers)
    import_adapter(folder, earlier.model_dir, earlier.training, tmp_path / "given")
    given, original = load_file(tmp_path / "given" / FILE), load_file(earlier.volume.adapter_dir / FILE)
    assert given.keys() == original.keys()
    assert all(torch.equal(given[name], original[name]) for name in original)
    settings = json.loads((tmp_path / "given" / "adapter_config.json").read_text())
    assert isinstance(settings["target_modules"], str)
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)


def narrow(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights[B] = weights[B][:-1].clone()


def zero(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    for name in weights:
        if ".lora_B." in name:
            weights[name].zero_()


def not_finite(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights[B][0, 0] = float("nan")


def half_a_layer(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    del weights[B], weights[B.replace("lora_B", "lora_A")]


def in_the_tower(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    for matrix in ("lora_A", "lora_B"):
        name = B.replace("lora_B", matrix)
        other = name.replace("language_model.layers.1.mlp.up_proj", "vision_tower.encoder.layers.0.mlp.fc1")
        weights[other] = weights[name].clone()


def more_layers(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    for matrix in ("lora_A", "lora_B"):
        name = B.replace("lora_B", matrix)
        weights[name.replace("layers.1.", "layers.99.")] = weights[name].clone()


def another_projector(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights[PROJECTOR] = weights[PROJECTOR][:-1].clone()


def trained_embedding(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    settings["modules_to_save"].append("embed_tokens")
    weights["base_model.model.model.language_model.embed_tokens.weight"] = torch.ones(2, 2)


def trained_tower(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    settings["modules_to_save"].append("vision_tower.pre_layrnorm")
    weights["base_model.model.model.vision_tower.pre_layrnorm.weight"] = torch.ones(2)


def whole_numbers(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    for name in weights:
        weights[name] = weights[name].long()


def set_to(**values: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    return lambda settings, weights: settings.update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (narrow, r"its update of \S+up_proj\.weight is \(255, 128\), but in the base that is \(256, 128\)"),
        (zero, "every LoRA B matrix is zero: it has not learned anything"),
        (not_finite, f"{B} holds values that are not finite"),
        (half_a_layer, r"not \S+layers\.1\.mlp\.up_proj\.weight of the base: it was trained on another one"),
        (in_the_tower, r"it updates vision_tower\.\S+fc1\.weight, which is none of q_proj"),
        (more_layers, r"it updates \S+layers\.99\S+, which is none of q_proj, .* in the base's 3 layers"),
        (another_projector, r"is not the base's projector: multi_modal_projector\.linear_1\.bias is \(127,\) in it"),
        (trained_embedding, r"is not the base's projector: language_model\.model\.embed_tokens\.weight is"),
        (
            trained_tower,
            r"it brings a vision tower that was trained \(vision_tower\.vision_model\.pre_layrnorm\.weight\)"
            r".* name the merged/ of the run that made it in spec\.model\.source, and no adapter",
        ),
        (whole_numbers, r"lora_A\.weight is stored as I64: only floating-point tensors are gone on from"),
        (
            set_to(lora_alpha=22.6),
            r"its lora_alpha is 22\.6, which spec\.training\.lora cannot say .*training\.method none merges",
        ),
        (set_to(use_dora=True), "use_dora is True, which merging does not know how to apply"),
        (set_to(peft_type="IA3"), "peft_type is 'IA3'"),
        (set_to(r="4"), "r is '4', not a number greater than 0"),
        (set_to(r=4.5), r"r is 4\.5, not a whole number"),
        (set_to(lora_alpha=True), "lora_alpha is True, not a number"),
        (set_to(lora_alpha=float("nan")), "lora_alpha is nan, not a number"),
        (set_to(r=8), "adapter_config.json's r, which is 8"),
        (set_to(modules_to_save="all"), "modules_to_save is 'all', not a list of names"),
        (set_to(**{"\x1b[2J": 1}), r"adapter_config.json: \S*\[2J is 1, which merging"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_adapter_that_does_not_fit_is_refused(
    tmp_path: Path, earlier: RunConfig, edit: Callable[..., None], message: str
) -> None:
    folder = change(earlier.volume.adapter_dir, tmp_path, edit)
    target = tmp_path / "given"
    with pytest.raises(StageError, match=message) as caught:
        import_adapter(folder, earlier.model_dir, earlier.training, target)
    assert caught.value.reason is Reason.INVALID_MODEL
    assert caught.value.message.startswith("spec.model.adapter: ")
    assert "\x1b" not in caught.value.message
    assert not target.exists()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"lora": {"rank": 8, "alpha": 8}}, r"in spec\.training, lora\.rank is 8 and must be 4$"),
        ({"lora": {"rank": 4, "alpha": 4, "rsLora": True}},
         r"lora\.alpha is 4 and must be 8; lora\.rsLora is True and must be False"),
        ({"lora": {"rank": 4, "alpha": 8, "targets": ["q_proj"]}},
         r"lora\.targets is \['q_proj'\] and must be \['down_proj'"),
        ({"projector": "frozen"}, "projector is frozen and must be train, since the adapter brings one that was"),
    ],
)  # fmt: skip
def test_settings_that_would_make_another_adapter_are_named(
    tmp_path: Path, earlier: RunConfig, dataset: tuple[Path, list[Sample]], training: dict[str, Any], message: str
) -> None:
    config = configure(tmp_path / "run", earlier.model_dir, dataset, model=GIVEN, training=training)
    with pytest.raises(StageError, match=message):
        give(config, earlier.volume.adapter_dir)


def test_a_folder_that_is_no_adapter_is_told(tmp_path: Path, earlier: RunConfig) -> None:
    for folder, message in (
        (earlier.model_dir, "holds no adapter_config.json, only .*name the folder of an adapter that PEFT has saved"),
        (tmp_path / "original", "is a LoRA of the original code, whose base is a language model"),
    ):
        if folder.name == "original":
            folder.mkdir()
            (folder / "non_lora_trainables.bin").touch()
        with pytest.raises(StageError, match=message):
            import_adapter(folder, earlier.model_dir, earlier.training, tmp_path / "given")
    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(earlier.volume.adapter_dir / "adapter_config.json", lone)
    with pytest.raises(StageError, match=f"{FILE} is missing"):
        import_adapter(lone, earlier.model_dir, earlier.training, tmp_path / "given")


def test_a_base_that_lacks_a_layers_tensor_is_told(tmp_path: Path, earlier: RunConfig) -> None:
    base = Path(shutil.copytree(earlier.model_dir, tmp_path / "base"))
    lost = "language_model.model.layers.1.mlp.up_proj.weight"
    edit_weights(base / "model.safetensors", lambda weights: weights.pop(lost))
    with pytest.raises(StageError, match=f"the base has no {lost}: fetch the whole checkpoint"):
        import_adapter(earlier.volume.adapter_dir, base, earlier.training, tmp_path / "given")


def test_what_an_earlier_container_left_is_written_anew(tmp_path: Path, earlier: RunConfig) -> None:
    target = tmp_path / "given"
    target.mkdir()
    (target / FILE).write_bytes(b"damaged")
    import_adapter(earlier.volume.adapter_dir, earlier.model_dir, earlier.training, target)
    assert load_file(target / FILE).keys() == load_file(earlier.volume.adapter_dir / FILE).keys()


def test_a_pattern_of_a_file_from_outside_is_never_matched(tmp_path: Path, earlier: RunConfig) -> None:
    """(a|a)*$ takes for ever on a name of forty letters."""
    folder = change(earlier.volume.adapter_dir, tmp_path, set_to(target_modules="(([a-z_.0-9])+)+!"))
    import_adapter(folder, earlier.model_dir, earlier.training, tmp_path / "given")
    assert "layers" in json.loads((tmp_path / "given" / "adapter_config.json").read_text())["target_modules"]
