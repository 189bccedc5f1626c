"""A merge that was killed: the next attempt takes whole shards over, makes damaged ones again, and the same results."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.files import aside_of, sha256_file
from llava_trainer.merging import resuming
from llava_trainer.outcome import StageOutput
from llava_trainer.stages import merge
from llava_trainer.tensors.hashed_file import HashedFile
from tests.trainer.checkpoints import edit_weights
from tests.trainer.runs import Recorder, make_run, run_config

SHARD_BYTES = 500_000
"""Of the toy's 1.7 MB in bfloat16."""

_MERGE_UNTIL_KILLED = """
import os, signal, sys
from pathlib import Path
from llava_trainer.merging import resuming
from llava_trainer.reporting import Reporter
from llava_trainer.stages import merge
from tests.trainer.runs import run_config
root, shards, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
record = resuming.record_shards
def record_and_die(aside, made_from, digests):
    if len(digests) > shards:
        os.kill(os.getpid(), signal.SIGKILL)
    record(aside, made_from, digests)
merge.record_shards = record_and_die
config = run_config(root)
merge.run(config, Reporter(config), max_shard_bytes=size)
"""


@pytest.fixture(scope="module")
def killed_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose merge was killed: two shards are whole, and the third is there without a word of it."""
    root = tmp_path_factory.mktemp("killed")
    make_run(root)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MERGE_UNTIL_KILLED, root, "2", str(SHARD_BYTES)],
        capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    return root


@pytest.fixture
def root(killed_root: Path, tmp_path: Path) -> Path:
    # With the times of the files, by which the base is known.
    return Path(shutil.copytree(killed_root, tmp_path / "run"))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of weight files that are written."""
    names: list[str] = []
    begin_file = HashedFile.__init__

    def note(self: HashedFile, path: Path) -> None:
        names.append(path.name)
        begin_file(self, path)

    monkeypatch.setattr(HashedFile, "__init__", note)
    return names


def left(root: Path) -> Path:
    return aside_of(root / "volume" / "attempts" / "merge-1" / "merged")


def second_attempt(root: Path, **changes: dict) -> tuple[StageOutput, Path]:
    config = run_config(root, run={"attempt": 2}, **changes)
    return merge.run(config, Recorder(config), max_shard_bytes=SHARD_BYTES), config.volume.merged_dir


def names_of(numbers: range, total: int) -> list[str]:
    return [f"model-{number:05d}-of-{total:05d}.safetensors" for number in numbers]


def count_shards(root: Path) -> int:
    name = min(path.name for path in left(root).glob("model-*"))
    return int(name.removesuffix(".safetensors").rpartition("-")[2])


INDEX = "model.safetensors.index.json"


def test_whole_shards_are_taken_over_after_a_kill(root: Path, written: list[str], tmp_path: Path) -> None:
    total = count_shards(root)
    assert total >= 4
    assert sorted(path.name for path in left(root).glob("model-*")) == names_of(range(1, 4), total)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in left(root).glob("model-*")}
    output, merged_dir = second_attempt(root)
    assert written == [*names_of(range(3, total + 1), total), INDEX]
    for name in names_of(range(1, 3), total):
        stat = (merged_dir / name).stat()
        assert (stat.st_ino, stat.st_mtime_ns) == before[name]
    assert not (merged_dir / resuming.RECORD).exists()
    # The same as by an attempt that nobody has disturbed.
    make_run(tmp_path / "undisturbed")
    config = run_config(tmp_path / "undisturbed")
    merge.run(config, Recorder(config), max_shard_bytes=SHARD_BYTES)
    for path in config.volume.merged_dir.glob("model*"):
        assert sha256_file(path) == sha256_file(merged_dir / path.name)
    assert output.numbers.max_logit_difference < 1e-4


def test_a_damaged_shard_is_made_again(root: Path, written: list[str], caplog: pytest.LogCaptureFixture) -> None:
    total = count_shards(root)
    damaged, whole = names_of(range(1, 3), total)
    content = bytearray((left(root) / damaged).read_bytes())
    content[-3] ^= 1
    (left(root) / damaged).write_bytes(content)
    second_attempt(root)
    assert whole not in written
    assert written == [damaged, *names_of(range(3, total + 1), total), INDEX]
    assert f"{damaged} is sha256:" in caplog.text
    assert "it is made again" in caplog.text


def test_a_container_that_starts_again_goes_on_with_its_own(root: Path, written: list[str]) -> None:
    total = count_shards(root)
    config = run_config(root)
    merge.run(config, Recorder(config), max_shard_bytes=SHARD_BYTES)
    assert written == [*names_of(range(3, total + 1), total), INDEX]
    assert sorted(path.name for path in config.volume.merged_dir.parent.glob("*merged*")) == ["merged"]
    assert sorted(path.name for path in config.volume.merged_dir.parent.glob(".merged*")) == []


def change_adapter(root: Path) -> None:
    file = run_config(root).volume.adapter_dir / "adapter_model.safetensors"
    edit_weights(file, lambda weights: [tensor.mul_(2) for name, tensor in weights.items() if "layers.0" in name])


def touch_base(root: Path) -> None:
    os.utime(root / "base" / "model.safetensors", ns=(1, 1))


def spoil_record(root: Path) -> None:
    (left(root) / resuming.RECORD).write_text('{"version": 9')


def climb_out(root: Path) -> None:
    """Names that lead elsewhere, and a link, are no shards."""
    file = left(root) / resuming.RECORD
    record = json.loads(file.read_text())
    _, second = sorted(record["digests"])
    (left(root) / second).rename(root / "elsewhere")
    (left(root) / second).symlink_to(root / "elsewhere")
    record["digests"] = {"../../secret": sha256_file(root / "elsewhere"), second: record["digests"][second]}
    file.write_text(json.dumps(record))


@pytest.mark.parametrize("harm", [change_adapter, touch_base, spoil_record, climb_out])
def test_shards_that_are_not_known_to_be_the_same_are_made_again(root: Path, written: list[str], harm) -> None:
    total = count_shards(root)
    harm(root)
    second_attempt(root)
    assert written == [*names_of(range(1, total + 1), total), INDEX]


def test_another_number_format_makes_other_shards(root: Path, written: list[str]) -> None:
    _, merged_dir = second_attempt(root, merge={"dtype": "float16"})
    assert len([name for name in written if name != INDEX]) == count_all(merged_dir)
    assert all(t.dtype == torch.float16 for file in merged_dir.glob("*.safetensors") for t in load_file(file).values())


def count_all(merged_dir: Path) -> int:
    return len(list(merged_dir.glob("*.safetensors")))


def test_shards_that_the_proof_refuses_are_not_taken_over(
    root: Path, monkeypatch: pytest.MonkeyPatch, written: list[str]
) -> None:
    """Whatever went wrong with them, the next attempt makes them anew."""
    config = run_config(root)

    def refuse(*_: object, **__: object) -> None:
        raise StageError(Reason.MERGE_MISMATCH, "differs")

    with monkeypatch.context() as patched:
        patched.setattr(merge, "prove_merge", refuse)
        with pytest.raises(StageError, match="differs"):
            merge.run(config, Recorder(config), max_shard_bytes=SHARD_BYTES)
    written.clear()
    second_attempt(root)
    assert len([name for name in written if name != INDEX]) == written_total(written)


def written_total(written: list[str]) -> int:
    return int(written[0].removesuffix(".safetensors").rpartition("-")[2])
