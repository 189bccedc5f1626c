"""Checkpoints as files: whole, verified, the newest first, and none that is damaged."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.files import begin_folder, publish_folder
from llava_trainer.training.checkpoint import (
    CheckpointState,
    DamagedCheckpointError,
    checkpoint_dir,
    find_checkpoints,
    list_adapter_files,
    list_checkpoints,
    prune_checkpoints,
    rank_file,
    read_rank,
    read_state,
    verify_files,
    write_manifest,
    write_rank,
)
from llava_trainer.training.tensors import save_tensors

TENSORS = {"group0.original": torch.arange(4.0), "generator.cpu": torch.arange(8, dtype=torch.uint8)}
STATE = CheckpointState(step=20, world_size=2, total_steps=100)


def write_checkpoint(checkpoints: Path, step: int = 20) -> Path:
    folder = checkpoint_dir(checkpoints, step)
    aside = begin_folder(folder)
    digests = [write_rank(aside, rank, TENSORS) for rank in (0, 1)]
    (aside / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (aside / "adapter" / name).write_text("{}")
    write_manifest(aside, CheckpointState(step=step, world_size=2, total_steps=100), digests)
    publish_folder(folder)
    return folder


def test_what_was_written_is_read(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    assert folder.name == "step-00000020"
    assert read_state(folder) == STATE
    for rank in (0, 1):
        tensors = read_rank(folder, rank)
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    verify_files(folder, list_adapter_files(folder))
    assert sorted(json.loads((folder / "manifest.json").read_text())) == [
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "rank-00000.safetensors",
        "rank-00001.safetensors", "state.json",
    ]  # fmt: skip


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("rank-00000.safetensors", cut),
        ("rank-00000.safetensors", Path.unlink),
        ("state.json", cut),
        ("adapter/adapter_model.safetensors", cut),
        ("manifest.json", cut),
        ("manifest.json", Path.unlink),
        ("manifest.json", lambda file: file.write_text("{}")),
    ],
)
def test_damage_is_found(tmp_path: Path, name: str, damage: Callable[[Path], None]):
    folder = write_checkpoint(tmp_path)
    damage(folder / name)

    def read_everything() -> None:
        read_state(folder)
        read_rank(folder, 0)
        verify_files(folder, list_adapter_files(folder))

    with pytest.raises(
        DamagedCheckpointError, match=name.split("/")[-1] if "manifest" not in name else "step-00000020"
    ):
        read_everything()


def test_a_file_that_is_no_safetensors_is_damage_even_if_its_digest_is_right(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    rank_file(folder, 1).write_bytes(b"x")
    write_manifest(folder, STATE, [])
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        read_rank(folder, 1)


def test_a_tensor_file_that_cannot_be_written_has_an_error_number(tmp_path: Path):
    with pytest.raises(OSError, match="No such file or directory") as caught:
        save_tensors(TENSORS, tmp_path / "nowhere" / "file")
    assert caught.value.errno == errno.ENOENT


def test_another_format_is_passed_over(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    write_manifest(folder, CheckpointState(step=20, world_size=2, total_steps=100, version=99), [])
    with pytest.raises(DamagedCheckpointError, match="format 99"):
        read_state(folder)


def test_own_checkpoints_come_before_earlier_attempts_and_later_attempts_do_not_count(tmp_path: Path):
    volume = RunVolume(root=tmp_path)
    for attempt, step in ((1, 40), (1, 20), (2, 20), (3, 60), (10, 20)):
        write_checkpoint(volume.checkpoints_dir(StageName.TRAIN, attempt), step)
    begin_folder(checkpoint_dir(volume.checkpoints_dir(StageName.TRAIN, 2), 40))
    (tmp_path / "attempts" / "merge-1").mkdir()
    found = [
        path.relative_to(tmp_path / "attempts").as_posix() for path in find_checkpoints(volume, StageName.TRAIN, 3)
    ]
    assert found == [
        "train-3/checkpoints/step-00000060", "train-2/checkpoints/step-00000020", "train-1/checkpoints/step-00000040",
        "train-1/checkpoints/step-00000020",
    ]  # fmt: skip
    assert find_checkpoints(RunVolume(root=tmp_path / "fresh"), StageName.TRAIN, 1) == []


def test_the_newest_are_kept(tmp_path: Path):
    for step in (20, 40, 60):
        write_checkpoint(tmp_path, step)
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000040", "step-00000060"]
    prune_checkpoints(tmp_path, 5)
    assert len(list_checkpoints(tmp_path)) == 2


def test_one_that_cannot_be_deleted_does_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "step-00000020").write_text("a file where a folder should be")
    write_checkpoint(tmp_path, 40)
    prune_checkpoints(tmp_path, 1)
    assert "could not be deleted" in caplog.text
