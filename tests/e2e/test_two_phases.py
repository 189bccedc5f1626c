"""Both phases on a real cluster: a language model and a vision tower become a LLaVA that answers, and is published.

Phase 1 aligns a fresh projector over two pods; phase 2 begins with it, packs its samples and partitions the weights
(ZeRO-3).
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llava_api.constants import Condition, Phase, StageName
from llava_api.status import StageState, Status
from llava_trainer.files import sha256_folder
from tests.demo.courier import Courier
from tests.demo.plan import INPUTS_CLAIM
from tests.e2e.runs import CAPTIONS_PATH, LANGUAGE_MODEL_PATH, VISION_TOWER_PATH, Runs, stage_states

pytestmark = pytest.mark.e2e

NAME = "phases"
PUBLISHED = "published/phases"


@pytest.fixture(scope="module")
def finished(runs: Runs) -> Iterator[Status]:
    """A run of both phases, ended."""
    captions = {"source": f"pvc://tiny-inputs/{CAPTIONS_PATH}", "format": "llava", "file": "export.json"}
    runs.start(
        NAME,
        model={
            "source": None,
            "languageModel": f"pvc://tiny-inputs/{LANGUAGE_MODEL_PATH}",
            "visionTower": f"pvc://tiny-inputs/{VISION_TOWER_PATH}",
        },
        alignment={
            "dataset": captions | {"images": "images"},
            "epochs": 4,
            "learningRate": 3e-3,
            "batch": {"perDevice": 8, "global": 16},
        },
        training={"packing": True, "zero": {"stage": 3}},
        top={"publish": {"destinations": [{"address": f"pvc://{INPUTS_CLAIM}/{PUBLISHED}"}]}},
    )
    yield runs.wait_for_end(NAME)
    runs.delete(NAME)


def test_every_stage_succeeded(finished: Status) -> None:
    assert finished.phase is Phase.SUCCEEDED, finished.failure
    assert stage_states(finished) == dict.fromkeys(StageName, StageState.SUCCEEDED)
    bad = {Condition.FAILED, Condition.STALLED, Condition.RECONCILING, Condition.SUSPENDED, Condition.DISTURBED}
    assert {condition.type for condition in finished.conditions if condition.status == "True"} == set(Condition) - bad


def test_the_status_says_what_model_it_is_and_what_was_planned(finished: Status) -> None:
    assert finished.model is not None
    assert finished.model.layout == "assembled"
    assert (finished.model.image_size_px, finished.model.tokens_per_image) == (56, 16)
    assert (finished.model.feature_layer, finished.model.feature_strategy) == ((-2,), "default")
    assert finished.plan is not None
    assert finished.plan.alignment_steps == 80
    assert (finished.plan.per_device_batch, finished.plan.accumulation) == (8, 1)
    assert finished.data is not None
    assert finished.data.samples_alignment == 320


def losses(volume: Path, stage: StageName) -> list[float]:
    lines = (volume / "attempts" / f"{stage}-1" / "history.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("stage", [StageName.ALIGN, StageName.TRAIN])
def test_the_loss_falls_in_both_phases(volume: Path, stage: StageName) -> None:
    curve = losses(volume, stage)
    assert sum(curve[-5:]) < 0.5 * sum(curve[:5])


def test_phase_1s_projector_enters_phase_2_and_the_merged_model_has_phase_2s(volume: Path, finished: Status) -> None:
    assert finished.artifacts is not None
    assert finished.artifacts.projector is not None
    aligned = load_file(volume / finished.artifacts.projector / "projector.safetensors")
    adapter = load_file(volume / "adapter" / "adapter_model.safetensors")
    trained = {name.partition("multi_modal_projector.")[2]: tensor for name, tensor in adapter.items()
               if "multi_modal_projector." in name}  # fmt: skip
    assert len(trained) == len(aligned) == 4
    for name, tensor in aligned.items():
        ours = trained[name.rpartition("multi_modal_projector.")[2]]
        # It went on from there: moved, but not far, as a projector that began anew would have.
        assert 0 < (ours.float() - tensor.float()).norm() < 0.5 * tensor.float().norm()


def test_the_tuned_model_has_learned(finished: Status) -> None:
    assert finished.evaluation is not None
    [metric] = [metric for metric in finished.evaluation.metrics if metric.name == "exact_match"]
    assert metric.base <= 0.05
    assert metric.tuned >= 0.8


def test_what_stands_at_the_destination_is_the_merged_model(
    finished: Status, volume: Path, courier: Courier, tmp_path: Path
) -> None:
    assert finished.artifacts is not None
    [published] = finished.artifacts.published
    assert (published.address, published.what) == (f"pvc://{INPUTS_CLAIM}/{PUBLISHED}", "merged")
    courier.fetch(INPUTS_CLAIM, PUBLISHED, tmp_path)
    beside = {"README.md", "provenance.intoto.jsonl", "publication.json"}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (volume / "merged").iterdir()} | beside
    assert sha256_folder(tmp_path) == published.digest
    for path in (volume / "merged").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
