"""Proves what is planned of a pod's memory against two real processes that train a model of 27 million parameters."""

import os
import random
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.memory import Prepared, plan_host
from llava_api.memory.host import DECODING_BYTES, LAUNCHER_BYTES, PROCESS_BYTES
from llava_api.report import MicroBatch
from llava_api.run_config import RunConfig
from llava_api.spec import Spec
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.reporting import Reporter
from llava_trainer.training.train import train
from tests.benchmarks.model import IMAGE_PX, write_model
from tests.tiny.tasks import corpus
from tests.trainer.many import run_in_processes
from tests.trainer.memory_shapes import make_shape
from tests.trainer.trainings import make_dataset, make_training

WORLD_SIZE = 2
TOLERANCE = 0.25
"""The C library keeps some of what it has been given back, which no plan has; on GPUs such memory is pinned instead."""
MODEL = make_shape(
    6, hidden=512, intermediate=1408, heads=8, key_value_heads=8, vocabulary=2048, tower_layers=7, tower_hidden=256,
    image_px=IMAGE_PX,
)  # fmt: skip
TRAINING: dict[str, Any] = {
    "method": "full", "zero": {"stage": 2, "offload": {"optimizer": True}}, "batch": {"perDevice": 4, "global": 8},
    "checkpoint": {"everySteps": 1, "keep": 1}, "learningRate": 1e-5,
}  # fmt: skip


class Sampler:
    """The most memory of its own (not mapped files) that this rank holds while the context is entered."""

    def __init__(self) -> None:
        self.before = self.peak = held()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.005):
            self.peak = max(self.peak, held())


def held() -> int:
    status = Path("/proc/self/status").read_text()
    return sum(int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 for name in ("RssAnon", "RssShmem"))


def measure(world: World, config: RunConfig) -> int:
    with Sampler() as sampler:
        train(config, world, Reporter(config), StopRequest())
    return sampler.peak - sampler.before


def test_a_pods_memory_is_what_its_processes_take(tmp_path: Path):
    write_model(tmp_path / "model", list(corpus(random.Random(0))))
    config = make_training(tmp_path, tmp_path / "model", make_dataset(tmp_path / "dataset")[:16], training=TRAINING)
    measured = run_in_processes(WORLD_SIZE, measure, config)
    spec = Spec.model_validate(
        {
            "model": {"source": "pvc://m/"}, "workers": {"gpus": 0, "replicas": WORLD_SIZE}, "training": TRAINING,
            "dataset": {"source": "pvc://d/", "format": "llava", "file": "a.json"},
        }
    )  # fmt: skip
    prepared = Prepared(largest=MicroBatch(rows=4, tokens=4 * 110, pictures=4, supervised=40))
    terms = {term.name: term.size for term in plan_host(spec, StageName.TRAIN, MODEL, prepared).terms}
    # What is there before, and images far larger than these.
    assert terms.pop("processes") == PROCESS_BYTES + LAUNCHER_BYTES
    terms["pictures"] -= DECODING_BYTES
    assert terms.keys() == {"training", "offloaded states", "checkpoint copies", "results", "pictures"}
    assert sum(terms.values()) == pytest.approx(max(measured), rel=TOLERANCE)


def test_what_a_process_takes_before_it_trains_is_planned_for():
    program = (
        "import llava_trainer.training.worker; from llava_trainer.host_memory import resident_bytes as r; print(r())"
    )
    said = subprocess.check_output([sys.executable, "-c", program], env=os.environ | {"TORCHDYNAMO_DISABLE": "1"})
    assert 0.6 < int(said.split()[-1]) / PROCESS_BYTES < 1.0
