"""Each end of a stage is caused for real: the stage's own process leaves the exit code, and the reason in its message.

docs/failures.md names one of these tests for every exit code, or one of test_train_stage.py. What needs a GPU is raised
where CUDA or NCCL would raise it (``faults``).
"""

import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_api.constants import StageName
from llava_api.failures import Reason, exit_code_of
from llava_api.report import StageFailure, StageResult
from llava_api.run_config import RunConfig
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.errors import StageError
from llava_trainer.gang.world import World
from llava_trainer.outcome import ENV_TERMINATION_LOG
from llava_trainer.reporting import Reporter
from llava_trainer.training.train import train
from tests.trainer.checkpoints import edit_weights
from tests.trainer.evaluated import make_evaluated, publish_config
from tests.trainer.exports import conversation, draw_image, prepare_config, write_json
from tests.trainer.runs import make_adapter, make_random_base, run_config
from tests.trainer.trainings import (
    FAULTS,
    PROCESS_DEADLINE_S,
    StopAfter,
    TrainStage,
    break_rank,
    change,
    environment_of_one,
    make_dataset,
    make_training,
    plan_of,
)


def fail(config: RunConfig, expected: Reason, *, volume: str = "", text: str | None = None) -> StageFailure:
    """Run a stage in a process of its own, and have it end for this reason.

    Args:
        config: what the stage is told.
        expected: why it ends.
        volume: a command of the shell that mounts the run's volume (``$1``), which only that process sees.
        text: its run.json, if not that of ``config``.
    """
    folder = config.volume_root.parent
    file, termination = folder / "run.json", folder / "termination-log"
    file.write_text(text or config.model_dump_json())
    config.volume_root.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "llava_trainer.cli", config.run.stage.value, "--config", str(file)]
    if volume:
        script = f'{volume}; shift; exec "$@"'
        command = ["unshare", "--mount", "sh", "-ec", script, "sh", str(config.volume_root), *command]
    done = subprocess.run(
        command, env=os.environ | {ENV_TERMINATION_LOG: str(termination), "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PROCESS_DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == exit_code_of(expected), done.stdout
    failure = StageResult.model_validate_json(termination.read_text()).failure
    assert failure is not None
    assert failure.reason is expected
    return failure


@pytest.fixture
def preparing(tmp_path: Path, toy_model_dir: Path) -> RunConfig:
    images = [f"{number}.png" for number in range(8)]
    for number, image in enumerate(images):
        draw_image(tmp_path / "dataset" / "images" / image, seed=number)
    entries = [conversation(image, [("What is it?", f"Lines, number {n}.")]) for n, image in enumerate(images)]
    write_json(tmp_path / "dataset" / "export.json", entries)
    return prepare_config(tmp_path, toy_model_dir)


def test_a_configuration_that_the_image_does_not_know(preparing: RunConfig):
    text = preparing.model_dump_json().replace('{"version":', '{"colour":"red","version":')
    assert "colour: Extra inputs" in fail(preparing, Reason.INVALID_CONFIG, text=text).message


def test_bad_data(preparing: RunConfig):
    (preparing.dataset_dir / "images" / "3.png").write_bytes(b"no picture")
    assert "export.json[3]" in fail(preparing, Reason.INVALID_DATA).message


def test_a_model_that_is_none(preparing: RunConfig, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    config = preparing.model_copy(update={"model_dir": tmp_path / "empty"})
    assert "config.json" in fail(config, Reason.INVALID_MODEL).message


def test_an_error_that_nobody_foresaw(preparing: RunConfig):
    shutil.rmtree(preparing.volume_root, ignore_errors=True)
    preparing.volume_root.mkdir()
    (preparing.volume_root / "attempts").write_text("a file where a folder should be")
    failure = fail(preparing, Reason.INTERNAL_ERROR)
    assert "/attempts" in failure.message
    assert "Traceback" in failure.log_tail


@pytest.mark.mounts
def test_a_full_volume(preparing: RunConfig):
    failure = fail(preparing, Reason.STORAGE_FULL, volume='mount -t tmpfs -o size=24k tmpfs "$1"')
    assert "No space left" in failure.message


@pytest.mark.mounts
def test_a_volume_that_is_mounted_read_only(preparing: RunConfig):
    failure = fail(preparing, Reason.STORAGE_UNWRITABLE, volume='mount -t tmpfs -o ro tmpfs "$1"')
    assert "Read-only file system" in failure.message


def fetching(config: RunConfig, address: str) -> RunConfig:
    fields = config.model_dump(by_alias=True)
    fields |= {"model": {"source": "hf://me/tiny"}, "download": {"hubEndpoint": address}}
    return RunConfig.model_validate(fields)


def test_a_source_that_does_not_answer(preparing: RunConfig, port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("IMPATIENT", "1")
    failure = fail(fetching(preparing, f"https://127.0.0.1:{port}"), Reason.SOURCE_UNAVAILABLE)
    assert "8 times in a row" in failure.message


def test_a_source_that_does_not_exist(preparing: RunConfig, tmp_path: Path):
    (tmp_path / "base").mkdir()
    for path in preparing.model_dir.iterdir():
        (tmp_path / "base" / path.name).symlink_to(path)
    fields = preparing.model_dump(by_alias=True) | {"modelDir": tmp_path / "base", "model": {"source": "pvc://base/"}}
    assert "leads out of the claim" in fail(RunConfig.model_validate(fields), Reason.SOURCE_REFUSED).message


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    make_evaluated(root)
    return root


def publishing(published: Path, root: Path, address: str, **more: object) -> RunConfig:
    """A run that publishes to ``address``."""
    shutil.copytree(published, root / "run")
    return publish_config(root / "run", destinations=[{"address": address, **more}])


def test_a_destination_that_does_not_answer(
    published: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("IMPATIENT", "1")
    address = f"oci://127.0.0.1:{port}/llava/trays:1"
    message = fail(publishing(published, tmp_path, address, plainHttp=True), Reason.DESTINATION_UNAVAILABLE).message
    assert message.startswith(f"spec.publish.destinations[0].address: {address} could not be published to")
    assert "8 times in a row" in message


def test_a_destination_that_holds_another_model(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("DESTINATIONS", str(tmp_path))
    other = tmp_path / "shelf" / "trays" / "pytorch_model.bin"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"weights")
    message = fail(publishing(published, tmp_path, "pvc://shelf/trays"), Reason.DESTINATION_REFUSED).message
    assert message.startswith("spec.publish.destinations[0].address: pvc://shelf/trays holds pytorch_model.bin, which")
    assert [one.name for one in other.parent.iterdir()] == [other.name]


def test_a_result_that_is_damaged(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("DESTINATIONS", str(tmp_path))
    (tmp_path / "shelf").mkdir()
    config = publishing(published, tmp_path, "pvc://shelf/trays")
    weights = config.volume.merged_dir / "config.json"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert "config.json has" in fail(config, Reason.RESULT_DAMAGED).message
    assert not (tmp_path / "shelf" / "trays").exists()


def test_an_adapter_that_does_not_belong_to_the_model(tmp_path: Path):
    make_random_base(tmp_path / "base")
    config = run_config(tmp_path)
    make_adapter(tmp_path / "base", config.volume.adapter_dir)
    edit_weights(
        config.volume.adapter_dir / "adapter_model.safetensors",
        lambda weights: weights.pop(next(name for name in weights if "lora_A" in name)),
    )
    assert fail(config, Reason.MERGE_MISMATCH).message


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_dataset(folder)[:16]


Make = Callable[..., RunConfig]


@pytest.fixture
def make_config(tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]], port: int) -> Make:
    (tmp_path / "dataset").symlink_to(dataset[0])

    def make(*, workers: dict | None = None, attempt: int = 1, **training) -> RunConfig:
        return make_training(
            tmp_path, toy_model_dir, dataset[1], attempt=attempt, training={"epochs": 2} | training,
            workers={"rendezvousPort": port} | (workers or {}),
        )  # fmt: skip

    return make


def passes_before(config: RunConfig, processor: Processor, *, steps: int) -> int:
    """Backward passes of a process until it has done so many steps, those before the first one included."""
    plan = plan_of(config, processor)
    return 1 + len(plan.find_extremes()) + steps * config.gradient_accumulation


def test_cuda_out_of_memory(make_config: Make, toy_processor: Processor, monkeypatch: pytest.MonkeyPatch):
    config = make_config()
    break_rank(monkeypatch, "out_of_device_memory", at=passes_before(config, toy_processor, steps=1) + 1)
    failure = fail(config, Reason.OUT_OF_DEVICE_MEMORY)
    assert failure.message.startswith("CUDA out of memory. Tried to allocate 2.00 GiB.")
    # In the first steps: the next attempt takes half as much at a time.
    assert (failure.rank, failure.step, failure.attempt_steps) == (0, 1, 1)


def test_nccl_fails(make_config: Make, toy_processor: Processor, monkeypatch: pytest.MonkeyPatch):
    """The process says nothing: PyTorch's watchdog over NCCL logs what it was and aborts."""
    config = make_config()
    break_rank(monkeypatch, "nccl_abort", at=passes_before(config, toy_processor, steps=2) + 1)
    failure = fail(config, Reason.NCCL_FAILED)
    assert "last error: Error while creating shared memory segment /dev/shm/nccl-7FyPQ9" in failure.message
    assert failure.step == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: nothing is wrong with it")
def test_a_machine_without_a_gpu(make_config: Make):
    failure = fail(make_config(workers={"device": "cuda"}), Reason.UNSUPPORTED_DEVICE)
    assert "Found no NVIDIA driver" in failure.message
    assert (failure.step, failure.attempt_steps) == (None, 0)


def test_a_driver_that_is_too_old(make_config: Make, monkeypatch: pytest.MonkeyPatch):
    break_rank(monkeypatch, "driver_too_old")
    assert "update it there" in fail(make_config(workers={"device": "cuda"}), Reason.DRIVER_TOO_OLD).message


def test_out_of_host_memory(make_config: Make, monkeypatch: pytest.MonkeyPatch):
    break_rank(monkeypatch, "out_of_memory")
    failure = fail(make_config(checkpoint={"everySteps": 1, "keep": 1}), Reason.OUT_OF_MEMORY)
    assert "the node's memory does not suffice for a checkpoint's copy" in failure.message
    assert (failure.step, failure.attempt_steps) == (1, 1)


def test_no_answer_from_a_rank(make_config: Make):
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = make_config(workers={"rendezvousPort": other.getsockname()[1], "numNodes": 2})
        assert "no rendezvous" in fail(config, Reason.RENDEZVOUS_FAILED).message


def test_no_supervised_tokens(make_config: Make, dataset: tuple[Path, list[Sample]]):
    config = make_config()
    long = [
        dataclasses.replace(sample, turns=(dataclasses.replace(sample.turns[0], text="tray " * 300), sample.turns[1]))
        for sample in dataset[1]
    ]
    write_samples(config.volume.train_file, long)
    assert "no token of step 1's" in fail(config, Reason.NOTHING_SUPERVISED).message


def test_no_gradient(make_config: Make, tmp_path: Path):
    config = make_config()
    dead = tmp_path / "dead"
    dead.mkdir()
    for path in config.model_dir.iterdir():
        (dead / path.name).write_bytes(path.read_bytes())
    # Whatever the layers below compute, the head says the same.
    edit_weights(dead / "model.safetensors", lambda weights: weights["language_model.lm_head.weight"].zero_())
    fields = config.model_dump(by_alias=True) | {"modelDir": dead}
    failure = fail(RunConfig.model_validate(fields), Reason.ZERO_GRADIENT)
    assert (failure.step, failure.attempt_steps) == (1, 1)


def test_training_that_changes_nothing(make_config: Make):
    """A step as small as this one leaves every weight the number that it was."""
    batch = {"perDevice": 16, "global": 16}
    config = make_config(batch=batch, epochs=1, method="full", learningRate=1e-30, projectorLearningRate=1e-30)
    assert "is as it was before training" in fail(config, Reason.ADAPTER_UNCHANGED).message


@pytest.fixture
def stopped(make_config: Make, process_group: tuple[World, int]) -> RunConfig:
    """A training that was stopped after two steps, with a checkpoint of each."""
    config = make_config(checkpoint={"everySteps": 1, "keep": 2})
    world, port = process_group
    with environment_of_one(port), pytest.raises(StageError, match="asked to stop"):
        train(config, world, Reporter(config), StopAfter(2))
    return config


def test_a_checkpoint_of_another_training(stopped: RunConfig):
    failure = fail(change(stopped, attempt=2, seed=7), Reason.CHECKPOINT_MISMATCH)
    assert "spec.training.seed 42, which is 7 now: set it back to 42" in failure.message


def test_a_damaged_checkpoint_is_passed_over(stopped: RunConfig):
    (newest,) = stopped.volume.checkpoints_dir(StageName.TRAIN, 1).glob("step-*2")
    file = newest / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 0xFF
    file.write_bytes(content)
    with TrainStage(change(stopped, attempt=2)) as stage:
        assert stage.wait() == 0, stage.output
        assert stage.result.train is not None
        assert stage.result.train.steps == 4
    resumed = re.search(r"resuming from \S+/step-(\d+)", stage.output)
    assert resumed is not None, stage.output
    assert int(resumed[1]) == 1
