"""Small trainings: a dataset of tray codes, a run configuration, and the train stage as a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_api.constants import ENV_COMPLETION_INDEX, StageName
from llava_api.report import StageResult
from llava_api.run_config import RunConfig
from llava_trainer.data.samples import Sample, Source, Turn, write_samples
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.outcome import ENV_TERMINATION_LOG
from tests.tiny.export import make_export
from tests.trainer.attempts import FIRST_ATTEMPTS, begin, begin_first

if TYPE_CHECKING:
    import pytest

    from llava_trainer.data.processor import Processor
    from llava_trainer.training.batch_plan import BatchPlan

FAULTS = Path(__file__).parent / "faults"
"""On PYTHONPATH, something goes wrong in processes of a stage."""
PROCESS_DEADLINE_S = 120


def make_dataset(folder: Path, *, images_per_scene: int = 1, shuffled: bool = False) -> list[Sample]:
    """Draw images into ``folder``/images; returns their samples, 32 times ``images_per_scene``."""
    make_export(folder, format="llava", images_per_scene=images_per_scene, shuffled=shuffled)
    entries = json.loads((folder / "export.json").read_text())
    return [_sample(index, entry) for index, entry in enumerate(entries)]


def text_only(sample: Sample) -> Sample:
    return Sample(id=f"{sample.id}-text", images=(), turns=sample.turns, source=sample.source)


def make_mixed_dataset(folder: Path) -> list[Sample]:
    """Images, and 21 samples of which 5 show none: the last batch of 8 is short, and one micro-batch all text."""
    samples = make_dataset(folder)[:16]
    return [*samples, *(text_only(sample) for sample in samples[:5])]


def make_training(root: Path, model_dir: Path, samples: list[Sample], **changes: Any) -> RunConfig:
    """Write ``samples`` onto a run's volume and configure training on them.

    ``changes`` are merged into the configuration's parts: ``training={"epochs": 2}``, ``workers={"numNodes": 2}``.
    """
    config = configure(root, model_dir, **changes)
    write_samples(config.volume.train_file, samples)
    return config


def configure(root: Path, model_dir: Path, *, attempt: int = 1, **changes: dict[str, Any]) -> RunConfig:
    fields: dict[str, Any] = {
        "run": {"namespace": "team-a", "name": "trays", "uid": "0c6f", "stage": StageName.TRAIN, "attempt": attempt},
        "volumeRoot": root / "volume",
        "results": FIRST_ATTEMPTS,
        "modelDir": model_dir,
        "datasetDir": root / "dataset",
        "dataset": {"source": "pvc://trays/", "format": "llava", "file": "export.json", "images": "images"},
        "training": {
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.0},
            "learningRate": 1e-2,
            "projectorLearningRate": 1e-3,
            "batch": {"perDevice": 4, "global": 8},
            "maxLength": 256,
            "gradientCheckpointing": False,
            "checkpoint": {"everySteps": 1000, "keep": 2},
        },
        "workers": {"gracePeriodSeconds": 30},
        "merge": {},
        "evaluation": {},
    }
    merged = {name: part | changes.get(name, {}) if isinstance(part, dict) else part for name, part in fields.items()}
    config = RunConfig.model_validate(merged)
    return begin_first(config)


def plan_of(config: RunConfig, processor: "Processor", world_size: int = 1) -> "BatchPlan":
    """The steps and batches that training by ``config`` takes."""
    from llava_trainer.data.sample_file import SampleFile
    from llava_trainer.training.batch_plan import make_plan
    from llava_trainer.training.phase import phase_of

    phase = phase_of(config)
    with SampleFile(phase.samples_file) as samples:
        return make_plan(phase, samples.measure(processor, phase.template, phase.training.max_length), world_size)


@contextmanager
def environment_of_one(port: int) -> Iterator[None]:
    """What torch's elastic agent tells the only process of a training. Processes started meanwhile inherit it."""
    environment = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    try:
        yield
    finally:
        for name in environment:
            del os.environ[name]


class StopAfter(StopRequest):
    """Asks to stop when the loop has looked ``looks`` times, between steps only."""

    received_meanwhile = False

    def __init__(self, looks: int) -> None:
        self._looks = looks

    @property
    def received(self) -> bool:
        self._looks -= 1
        return self._looks < 0


class StopWithin(StopRequest):
    """Asks one rank to stop after ``steps`` steps, when it has run ``micro_batches`` of the next one."""

    def __init__(self, steps: int, *, micro_batches: int, rank: int) -> None:
        self._steps, self._micro_batches, self._rank = steps, micro_batches, rank
        self._begun = self._looks = 0

    @property
    def received(self) -> bool:
        self._begun += 1
        self._looks = 0
        return False

    @property
    def received_meanwhile(self) -> bool:
        self._looks += 1
        is_there = self._begun > self._steps and self._looks > self._micro_batches
        return is_there and int(os.environ["RANK"]) == self._rank


def break_rank(monkeypatch: "pytest.MonkeyPatch", fault: str, *, rank: int = 0, at: int = 1) -> None:
    """Have something go wrong in one of the training processes that are started from now on (see ``faults``)."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setenv("FAULT_RANK", str(rank))
    monkeypatch.setenv("FAULT_AT", str(at))


class TrainStage:
    """``llava-trainer train`` of one pod, running."""

    def __init__(self, config: RunConfig, *, node: int = 0) -> None:
        self._folder = config.volume_root.parent / f"pod-{config.run.attempt}-{node}"
        self._folder.mkdir(exist_ok=True)
        file = self._folder / "run.json"
        file.write_text(config.model_dump_json())
        environment = os.environ | {
            ENV_COMPLETION_INDEX: str(node),
            ENV_TERMINATION_LOG: str(self._folder / "termination-log"),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self._folder),
        }
        self._log = (self._folder / "log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llava_trainer.cli", config.run.stage.value, "--config", str(file)],
            env=environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def wait(self, timeout_s: float = PROCESS_DEADLINE_S) -> int:
        """Exit code."""
        return self.process.wait(timeout_s)

    @property
    def result(self) -> StageResult:
        return StageResult.model_validate_json((self._folder / "termination-log").read_text())

    @property
    def output(self) -> str:
        return (self._folder / "log").read_text()

    def training_processes(self) -> list[int]:
        """Process ids of the training processes that it started, and that still run."""
        return children_of(self.process.pid)

    def __enter__(self) -> "TrainStage":
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in [*self.training_processes(), *([self.process.pid] if self.process.poll() is None else [])]:
            os.kill(pid, 9)
        self.process.wait()
        self._log.close()


def children_of(pid: int) -> list[int]:
    """Process ids of the children of ``pid`` that are not zombies."""
    children = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            children.append(int(status.parent.name))
    return children


def _sample(index: int, entry: dict[str, Any]) -> Sample:
    question, answer = (turn["value"].removeprefix("<image>\n") for turn in entry["conversations"])
    return Sample(
        id=entry["id"],
        images=(entry["image"],),
        image_turns=(0,),
        turns=(Turn(role="user", text=question), Turn(role="assistant", text=answer)),
        source=Source(file="export.json", index=index),
    )


def change(config: RunConfig, *, attempt: int = 1, **training: Any) -> RunConfig:
    """The same run as another attempt, which begins, with other settings of training."""
    fields = config.model_dump(by_alias=True)
    fields["run"]["attempt"] = attempt
    fields["training"] |= training
    return begin(RunConfig.model_validate(fields))
