"""A run's volume as it stands when merging begins: tiny base, checked samples, an adapter, a training curve."""

import json
import math
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlavaForConditionalGeneration

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.data.dataset_report import DatasetReport, ImageSummary, Lengths, Note, Side
from llava_trainer.data.samples import Sample, Source, Turn, write_samples
from llava_trainer.model.layout import PROJECTOR
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import Curve, CurvePoint
from tests.tiny.base import build_model, build_processor, write_hub_layout
from tests.tiny.export import make_export
from tests.tiny.tasks import corpus
from tests.tiny.tokenizer import build_tokenizer
from tests.trainer.attempts import FIRST_ATTEMPTS, begin
from tests.trainer.checkpoints import TARGETS


class Recorder(Reporter):
    """Keeps what is reported instead of pushing it."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.steps: list[tuple[int, int]] = []

    def update(self, step: int, total_steps: int, **measures: object) -> None:
        self.steps.append((step, total_steps))


def make_run(root: Path) -> RunConfig:
    """Make base, dataset and volume below ``root``; returns the configuration of the first merge attempt.

    24 samples to train on and 8 held out, the first of them with two questions and the last without an image.
    """
    make_random_base(root / "base")
    make_export(root / "data", format="llava", images_per_scene=1)
    config = run_config(root)
    samples = list(_read_export(root / "data" / "export.json"))
    follow_up = (Turn(role="user", text="In which corner is the block?"), Turn(role="assistant", text="Top left."))
    held_out = [
        replace(samples[0], turns=samples[0].turns + follow_up),
        *samples[1:7],
        replace(samples[7], images=(), image_turns=()),
    ]
    write_samples(config.volume.validation_file, held_out)
    write_samples(config.volume.train_file, samples[8:])
    config.volume.dataset_report_json.write_text(dataset_report(held_out=8, trained_on=24).model_dump_json())
    make_adapter(root / "base", config.volume.adapter_dir)
    _write_history(config.volume.history_file(StageName.TRAIN, 1))
    return config


def run_config(root: Path, stage: StageName = StageName.MERGE, **changes: dict) -> RunConfig:
    """The run's configuration for a stage, whose first attempt begins; ``changes`` as in ``describe_run``."""
    return begin(describe_run(root, stage, **changes))


def describe_run(root: Path, stage: StageName, **changes: dict) -> RunConfig:
    """The run's configuration; ``changes`` are merged into its parts (``evaluation={"gpus": 1}``)."""
    fields = {
        "run": {"namespace": "team-a", "name": "trays", "uid": "0c6f", "stage": stage, "attempt": 1},
        "volumeRoot": root / "volume",
        "results": FIRST_ATTEMPTS,
        "modelDir": root / "base",
        "datasetDir": root / "data",
        "dataset": {"source": "pvc://trays/", "format": "llava", "file": "export.json", "images": "images"},
        "training": {"lora": {"rank": 4, "alpha": 12}, "batch": {"perDevice": 4, "global": 8}, "maxLength": 512},
        "workers": {},
        "merge": {},
        "evaluation": {"gpus": 0, "generation": {"maxNewTokens": 12}},
    }
    return RunConfig.model_validate(
        {name: part | changes.get(name, {}) if isinstance(part, dict) else part for name, part in fields.items()}
    )


def dataset_report(*, held_out: int, trained_on: int, notes: tuple[Note, ...] = ()) -> DatasetReport:
    """What prepare would have written, as far as evaluation reads it."""
    sides = [
        Side(samples=count, pairs=count, pictures=count, supervised_tokens=9 * count)
        for count in (trained_on, held_out)
    ]
    files = held_out + trained_on
    images = ImageSummary(
        files=files, different=files, tokens_each=16, aspect_ratio="pad", smallest_px=(112, 112), largest_px=(112, 112)
    )
    return DatasetReport(
        accepted=True,
        format="llava",
        file="export.json",
        samples_read=files,
        train=sides[0],
        validation=sides[1],
        pictures=images,
        lengths=Lengths(longest=60, median=59, total=59 * files, max_length=512, overlong=0, histogram=()),
        refused_count=0,
        refused=(),
        notes=notes,
    )


def make_random_base(folder: Path) -> None:
    """A base in hub layout that has learned nothing, with weights large enough that each prompt gets another answer."""
    torch.manual_seed(0)
    processor = build_processor(build_tokenizer(corpus(random.Random(0))))
    model = build_model(processor.tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    write_hub_layout(model, processor, folder)


def make_adapter(base_dir: Path, adapter_dir: Path, seed: int = 1) -> None:
    """Save an adapter with random matrices and a projector a little off the base's, as training would."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration.from_pretrained(base_dir)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS, modules_to_save=[PROJECTOR]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    tuned.save_pretrained(adapter_dir)


def _read_export(file: Path) -> Iterable[Sample]:
    for index, entry in enumerate(json.loads(file.read_text())):
        question, answer = (turn["value"].removeprefix("<image>\n") for turn in entry["conversations"])
        yield Sample(
            id=entry["id"],
            images=(entry["image"],),
            image_turns=(0,),
            turns=(Turn(role="user", text=question), Turn(role="assistant", text=answer)),
            source=Source(file=file.name, index=index),
        )


def _write_history(file: Path, num_steps: int = 60) -> None:
    history = Curve(file)
    for step in range(1, num_steps + 1):
        history.append(
            CurvePoint(
                step=step, epoch=step / 3, loss=3 * math.exp(-step / 12) + 0.05,
                learning_rate=2e-4 * math.sin(step / num_steps * math.pi), grad_norm=1.0, tokens=900,
                samples_per_second=40.0, tokens_per_second=4000.0,
            )
        )  # fmt: skip
    history.close()
