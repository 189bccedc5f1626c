"""Each of LLaVA's two phases takes its own dataset, rates and sizes from the spec, and the rest from training."""

from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.spec import Alignment, Training
from llava_trainer.errors import StageError
from llava_trainer.training.phase import phase_of

CAPTIONS = {"source": "pvc://captions/", "format": "llava", "file": "captions.json", "images": "pictures",
            "imageAspectRatio": "square"}  # fmt: skip


def configure(stage: StageName, *, alignment: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"namespace": "team-a", "name": "trays", "uid": "0c6f", "stage": stage, "attempt": 1},
            "volumeRoot": "/run",
            "results": {"prepare": 3},
            "modelDir": "/model",
            "datasetDir": "/inputs/trays",
            "dataset": {"source": "pvc://trays/", "format": "llava", "file": "export.json", "images": "images"},
            "alignmentDir": "/inputs/captions" if alignment else None,
            "alignment": alignment,
            "training": training,
            "workers": {},
            "merge": {},
            "evaluation": {},
        }
    )


def test_phase_1_has_its_own_dataset_rate_and_sizes():
    alignment = {"dataset": CAPTIONS, "epochs": 2, "learningRate": 1e-3, "batch": {"perDevice": 16, "global": 64}}
    phase = phase_of(configure(StageName.ALIGN, alignment=alignment, epochs=5, learningRate=2e-4, seed=7))
    assert (phase.stage, phase.method, phase.template) == (StageName.ALIGN, "projector", "plain")
    assert phase.samples_file == Path("/run/attempts/prepare-3/data/alignment.jsonl")
    assert phase.images.find("a.png") == Path("/inputs/captions/pictures/a.png")
    assert phase.image_aspect_ratio == "square"
    assert (phase.training.epochs, phase.training.batch.per_device, phase.training.batch.global_) == (2, 16, 64)
    assert (phase.training.peak_learning_rate, phase.training.projector_learning_rate) == (1e-3, 1e-3)
    assert phase.training.seed == 7


@pytest.mark.parametrize(("method", "peak"), [("lora", 2e-4), ("qlora", 2e-4), ("full", 2e-5)])
def test_phase_2_takes_what_training_says(method: str, peak: float):
    phase = phase_of(configure(StageName.TRAIN, alignment={"dataset": CAPTIONS}, method=method, epochs=5))
    assert (phase.stage, phase.method, phase.template) == (StageName.TRAIN, method, "v1")
    assert phase.samples_file == Path("/run/attempts/prepare-3/data/train.jsonl")
    assert phase.images.find("a.png") == Path("/inputs/trays/images/a.png")
    assert (phase.image_aspect_ratio, phase.training.epochs) == ("pad", 5)
    assert (phase.training.peak_learning_rate, phase.training.projector_learning_rate) == (peak, 2e-5)


def test_everything_that_both_share_is_what_training_says():
    shared = {
        "weightDecay": 0.1, "warmupRatio": 0.5, "scheduler": "linear", "maxLength": 128, "precision": "fp32",
        "gradientCheckpointing": False, "attention": "eager", "checkpoint": {"everySteps": 7}, "packing": True,
        "zero": {"stage": 3}, "grouping": "none", "lora": {"rank": 2}, "quantization": {"double": False},
    }  # fmt: skip
    for stage in (StageName.ALIGN, StageName.TRAIN):
        config = configure(stage, alignment={"dataset": CAPTIONS}, **shared)
        phase = phase_of(config)
        for name in config.training.model_fields_set:
            assert getattr(phase.training, name) == getattr(config.training, name), name


def test_a_phase_that_the_run_does_not_have_is_refused():
    for config in (configure(StageName.ALIGN), configure(StageName.TRAIN, method="none")):
        with pytest.raises(StageError) as caught:
            phase_of(config)
        assert caught.value.reason is Reason.INVALID_CONFIG


def test_nothing_that_phase_1_has_itself_is_taken_from_training():
    """A setting that spec.alignment gets in place of one of spec.training has to come through here."""
    own = {"epochs": 2, "learningRate": 1e-3, "batch": {"perDevice": 16, "global": 64}}
    config = configure(StageName.ALIGN, alignment={"dataset": CAPTIONS, **own})
    assert config.alignment is not None
    both = set(Alignment.model_fields) & set(Training.model_fields)
    assert both == config.alignment.model_fields_set - {"dataset"}
    for name in both:
        assert getattr(phase_of(config).training, name) == getattr(config.alignment, name), name
