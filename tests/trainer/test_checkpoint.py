"""Checkpoints as files: whole, verified, the newest first, and none that is damaged."""

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.files import begin_folder, publish_folder, sha256_file
from llava_trainer.retrying import OF_ANOTHER_NODE, Rereading
from llava_trainer.tensors.writing import save_tensors, write_hashed
from llava_trainer.training import checkpoint
from llava_trainer.training.checkpoint import (
    CheckpointState,
    DamagedCheckpointError,
    StoredOptimizer,
    checkpoint_dir,
    piece_key,
    rank_file,
    read_manifest,
    read_state,
    verify_files,
    write_manifest,
    write_rank,
)
from llava_trainer.training.identity import find_differences
from llava_trainer.training.retention import (
    find_checkpoints,
    list_checkpoints,
    prune_checkpoints,
    remove_unfinished,
)

WHOLE = {"weight": torch.arange(12.0).view(3, 4), "bias": torch.arange(100.0, 103.0)}
SLICES = ([("weight", 0, 7), ("bias", 0, 3)], [("weight", 7, 12)])
"""What each of two processes keeps: name, start, stop."""
STATE = CheckpointState(
    step=20, total_steps=100, world_size=2, seed=42, parameters={name: list(t.shape) for name, t in WHOLE.items()}
)


def write_checkpoint(checkpoints: Path, step: int = 20, slices=SLICES) -> Path:
    folder = checkpoint_dir(checkpoints, step)
    aside = begin_folder(folder)
    digests = [
        write_rank(aside, rank, {piece_key("original", name, a): WHOLE[name].view(-1)[a:b] for name, a, b in mine})
        for rank, mine in enumerate(slices)
    ]
    (aside / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (aside / "adapter" / name).write_text("{}")
    write_manifest(aside, STATE, digests)
    publish_folder(folder)
    return folder


def test_what_was_written_is_read_by_whoever_asks_for_what_part(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    assert folder.name == "step-00000020"
    assert read_state(folder, read_manifest(folder)) == STATE
    with StoredOptimizer(folder, STATE) as stored:
        stored.check_whole(["original"])
        for name, tensor in WHOLE.items():
            assert torch.equal(stored.read_whole("original", name), tensor)
        for start, stop in ((0, 12), (0, 7), (6, 9), (7, 12), (11, 12), (5, 5)):
            assert torch.equal(stored.read("original", "weight", start, stop), torch.arange(12.0)[start:stop])
    verify_files(folder, read_manifest(folder))
    assert sorted(json.loads((folder / "manifest.json").read_text())) == [
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "rank-00000.safetensors",
        "rank-00001.safetensors", "state.json",
    ]  # fmt: skip


def test_files_are_plain_safetensors_with_their_digest(tmp_path: Path):
    tensors = {"a": torch.arange(5.0), "b": torch.zeros(0), "a longer name": torch.tensor([float("inf"), -1.0])}
    digest = write_hashed(tensors, tmp_path / "file.safetensors")
    assert f"sha256:{digest.hex()}" == sha256_file(tmp_path / "file.safetensors")
    loaded = load_file(tmp_path / "file.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


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
        read_state(folder, read_manifest(folder))
        for shard in (0, 1):
            verify_files(folder, read_manifest(folder), shard, 2)

    with pytest.raises(
        DamagedCheckpointError, match=name.split("/")[-1] if "manifest" not in name else "step-00000020"
    ):
        read_everything()


def test_a_missing_file_of_a_process_is_damage(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    rank_file(folder, 1).unlink()
    write_manifest(folder, STATE, [])
    with pytest.raises(DamagedCheckpointError, match="lacks rank-00001"):
        read_state(folder, read_manifest(folder))


def test_a_gap_is_damage(tmp_path: Path):
    folder = write_checkpoint(tmp_path, slices=([("weight", 0, 6), ("bias", 0, 3)], [("weight", 7, 12)]))
    with (
        StoredOptimizer(folder, STATE) as stored,
        pytest.raises(DamagedCheckpointError, match=r"lacks numbers of weight \(original\) from 6 on"),
    ):
        stored.check_whole(["original"])


@pytest.mark.parametrize("content", [b"x", None])
def test_a_file_that_is_no_safetensors_is_damage_even_if_its_digest_is_right(tmp_path: Path, content: bytes | None):
    folder = write_checkpoint(tmp_path)
    rank_file(folder, 1).unlink()
    if content:
        rank_file(folder, 1).write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="cannot be read"), StoredOptimizer(folder, STATE):
        pass


@pytest.mark.parametrize("shape", [(), (3, 4)], ids=["a number", "a matrix"])
def test_slices_that_do_not_lie_flat_are_damage(tmp_path: Path, shape: tuple[int, ...]):
    folder = write_checkpoint(tmp_path)
    save_file({piece_key("original", "weight", 0): torch.zeros(shape)}, rank_file(folder, 1))
    with pytest.raises(DamagedCheckpointError, match="cannot be read"), StoredOptimizer(folder, STATE):
        pass


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 200_000], ids=["a list", "cut", "no text", "deep"])
def test_a_state_that_is_none_is_damage_even_if_its_digest_is_right(tmp_path: Path, content: bytes):
    folder = write_checkpoint(tmp_path)
    (folder / "state.json").write_bytes(content)
    manifest = dataclasses.replace(read_manifest(folder), files=digests_of(folder))
    with pytest.raises(DamagedCheckpointError, match=r"state\.json cannot be read|has format None"):
        read_state(folder, manifest)


@pytest.mark.parametrize(
    ("field", "value"), [("step", "20"), ("step", True), ("world_size", None), ("parameters", 7), ("training", [])]
)
def test_a_state_of_other_kinds_of_values_is_damage(tmp_path: Path, field: str, value: object):
    folder = write_checkpoint(tmp_path)
    state = folder / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {field: value}))
    manifest = dataclasses.replace(read_manifest(folder), files=digests_of(folder))
    with pytest.raises(DamagedCheckpointError, match=f"is not what this version writes: {field}"):
        read_state(folder, manifest)


def test_a_manifest_deeper_than_any_is_damage(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    (folder / "manifest.json").write_bytes(b"[" * 200_000)
    with pytest.raises(DamagedCheckpointError, match="cannot be verified"):
        read_manifest(folder)


def test_a_tensor_file_that_cannot_be_written_has_an_error_number(tmp_path: Path):
    with pytest.raises(OSError, match="No such file or directory") as caught:
        save_tensors(WHOLE, tmp_path / "nowhere" / "file")
    assert caught.value.errno == errno.ENOENT


def test_another_format_is_passed_over(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    write_manifest(folder, dataclasses.replace(STATE, version=99), [])
    with pytest.raises(DamagedCheckpointError, match="format 99"):
        read_state(folder, read_manifest(folder))


def test_a_state_that_a_later_version_has_written_is_passed_over(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    state = folder / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"invented": 1}))
    manifest = dataclasses.replace(read_manifest(folder), files=digests_of(folder))
    with pytest.raises(DamagedCheckpointError, match=r"is not what this version writes: .*invented"):
        read_state(folder, manifest)


def taken_over(volume: RunVolume, attempt: int) -> Path:
    """Where attempt 3 has its own checkpoints, those of attempt 2, and what that one had taken over of attempt 1."""
    folder = volume.attempt_dir(StageName.TRAIN, 3)
    for number in range(2, attempt - 1, -1):
        folder = folder / "before" / f"train-{number}"
    return folder / "checkpoints"


def make_attempts(volume: RunVolume, *made: tuple[int, int]) -> list[Path]:
    """Checkpoints of attempts up to the third, which has taken the others over."""
    for attempt in (1, 2, 3):
        taken_over(volume, attempt).mkdir(parents=True)
    return [write_checkpoint(taken_over(volume, attempt), step) for attempt, step in made]


def test_own_checkpoints_come_before_earlier_attempts_and_later_attempts_do_not_count(tmp_path: Path):
    volume = RunVolume(root=tmp_path)
    make_attempts(volume, (3, 60), (2, 20), (1, 40), (1, 20))
    begin_folder(checkpoint_dir(taken_over(volume, 2), 40))
    other = volume.checkpoints_dir(StageName.TRAIN, 10)
    other.parent.mkdir()
    write_checkpoint(other, 20)
    assert find_checkpoints(volume, StageName.TRAIN, 3) == [
        checkpoint_dir(taken_over(volume, attempt), step) for attempt, step in ((3, 60), (2, 20), (1, 40), (1, 20))
    ]
    assert find_checkpoints(RunVolume(root=tmp_path / "fresh"), StageName.TRAIN, 1) == []


def test_the_newest_are_kept(tmp_path: Path):
    for step in (20, 40, 60):
        write_checkpoint(tmp_path, step)
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000040", "step-00000060"]
    prune_checkpoints(tmp_path, 5)
    assert len(list_checkpoints(tmp_path)) == 2


def test_earlier_attempts_make_room_for_this_ones(tmp_path: Path):
    volume = RunVolume(root=tmp_path)
    make_attempts(volume, (1, 20), (2, 20), (2, 40), (3, 60))
    found = find_checkpoints(volume, StageName.TRAIN, 3)
    for keep in (3, 2):
        prune_checkpoints(volume.checkpoints_dir(StageName.TRAIN, 3), keep, found[1:])
        assert find_checkpoints(volume, StageName.TRAIN, 3) == found[:keep]


def test_what_was_left_unfinished_is_removed(tmp_path: Path):
    volume = RunVolume(root=tmp_path)
    (whole,) = make_attempts(volume, (2, 20))
    for attempt in (1, 2, 3):
        begin_folder(checkpoint_dir(taken_over(volume, attempt), 40))
    other = volume.checkpoints_dir(StageName.TRAIN, 4)
    other.parent.mkdir()
    unfinished = begin_folder(checkpoint_dir(other, 40))
    remove_unfinished(volume, StageName.TRAIN, 3)
    assert sorted(tmp_path.rglob("*step-*")) == sorted([whole, unfinished])
    verify_files(whole, read_manifest(whole))


def test_one_that_cannot_be_deleted_does_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "step-00000020").write_text("a file where a folder should be")
    write_checkpoint(tmp_path, 40)
    prune_checkpoints(tmp_path, 1)
    assert "could not be deleted" in caplog.text


def fail_at_first(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> None:
    """Have files fail ``times`` times to be read, as a file system says it."""
    left = [times]

    def read(path: Path) -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, "not now", str(path))
        return sha256_file(path)

    monkeypatch.setattr(checkpoint, "sha256_file", read)


@pytest.mark.parametrize(
    ("number", "times", "is_waited_for"),
    [(errno.ESTALE, 3, True), (errno.EIO, 3, True), (errno.EIO, 100, False), (errno.EACCES, 1, False)],
)
def test_what_may_be_over_soon_is_tried_again_before_a_checkpoint_counts_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, times: int, is_waited_for: bool
):
    folder, clock = write_checkpoint(tmp_path), Clock()
    rereading = Rereading(sleep=clock.sleep, clock=clock.now)
    fail_at_first(monkeypatch, number, times)
    if is_waited_for:
        verify_files(folder, read_manifest(folder), rereading=rereading)
        assert clock.time_s == pytest.approx(0.1 + 0.2 + 0.4)
        return
    with pytest.raises(DamagedCheckpointError, match="cannot be verified"):
        verify_files(folder, read_manifest(folder), rereading=rereading)
    assert clock.time_s <= rereading.transient_s


class Clock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds


def test_a_manifest_that_another_node_has_just_written_is_waited_for(tmp_path: Path):
    (tmp_path / "there").mkdir()
    there, clock = write_checkpoint(tmp_path / "there"), Clock()
    here = tmp_path / "here" / there.name

    def sleep(seconds: float) -> None:
        """What this node knows of the folder is forgotten step by step: first nothing, then an older one, then all."""
        clock.sleep(seconds)
        if clock.time_s > 30 and not here.exists():
            shutil.copytree(there, here)
            (here / "manifest.json").write_text("{}")
        if clock.time_s > 60:
            shutil.copytree(there, here, dirs_exist_ok=True)

    expected = read_manifest(there).digest
    patient = dataclasses.replace(OF_ANOTHER_NODE, sleep=sleep, clock=clock.now)
    assert read_manifest(here, expected=expected, rereading=patient).files == read_manifest(there).files
    assert 60 < clock.time_s < OF_ANOTHER_NODE.missing_s
    with pytest.raises(DamagedCheckpointError, match="on this node and sha256:00 on the first one"):
        read_manifest(here, expected="sha256:00", rereading=patient)


def test_a_checkpoint_of_the_format_before_is_read_and_tells_less(tmp_path: Path):
    folder = write_checkpoint(tmp_path)
    write_manifest(folder, dataclasses.replace(STATE, version=2), [])
    state = read_state(folder, dataclasses.replace(read_manifest(folder), files=digests_of(folder)))
    assert (state.version, dict(state.training)) == (2, {})
    assert find_differences(state.training, {"spec.training.seed": "1"}) == []


def digests_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("own", "passed_over", "keep", "kept"),
    [
        # Not overtaken yet: it goes after older ones that are whole.
        ([250], [(1, 400)], 2, [(3, 250), (1, 400)]),
        ([250], [(1, 400)], 1, [(3, 250)]),
        # Overtaken: it goes first.
        ([250, 400], [(1, 400)], 2, [(3, 400), (3, 250)]),
        # One of its own attempt (the pod was restarted) never takes the place of one that is whole.
        ([250, 400], [(3, 400)], 1, [(3, 250)]),
        ([250, 400], [(3, 400)], 2, [(3, 400), (3, 250)]),
    ],
)
def test_what_could_not_be_read_is_not_the_first_to_go(
    tmp_path: Path, own: list[int], passed_over: list[tuple[int, int]], keep: int, kept: list[tuple[int, int]]
):
    volume = RunVolume(root=tmp_path)
    make_attempts(volume, (1, 200), (1, 400), *((3, step) for step in own))
    folders = [checkpoint_dir(taken_over(volume, attempt), step) for attempt, step in passed_over]
    checkpoints = volume.checkpoints_dir(StageName.TRAIN, 3)
    earlier = [path for path in find_checkpoints(volume, StageName.TRAIN, 3) if path.parent != checkpoints]
    prune_checkpoints(checkpoints, keep, earlier, folders)
    assert find_checkpoints(volume, StageName.TRAIN, 3) == [
        checkpoint_dir(taken_over(volume, attempt), step) for attempt, step in kept
    ]
