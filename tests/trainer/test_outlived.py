"""A pod that outlives its attempt: stopped while it completes something, continued when another has taken over.

Real processes. What the later attempt has made does not change, and the old pod ends by itself.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_api.constants import StageName
from llava_api.failures import Reason, exit_code_of
from llava_api.run_config import Reporting, RunConfig
from llava_trainer.files import sha256_folder
from llava_trainer.training.curve import read_curve
from llava_trainer.training.retention import list_checkpoints
from tests.ports import free_port
from tests.trainer.exports import conversation, draw_image, prepare_config, write_json
from tests.trainer.pods import Pod, list_contents
from tests.trainer.runs import make_run, run_config
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.files import FileServer
from tests.trainer.trainings import make_dataset, make_training

SUPERSEDED = exit_code_of(Reason.SUPERSEDED)
DEADLINE_S = 90


class Operator(FileServer):
    """Takes reports with one answer."""

    status = 200
    num_reports = 0

    def take(self, body: bytes) -> int:
        self.num_reports += 1
        return self.status


def await_that(holds: Callable[[], bool], pod: Pod) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert pod.process.poll() is None, pod.output
        assert time.monotonic() < deadline, pod.output
        time.sleep(0.05)


Make = Callable[[int], RunConfig]


def unclaim(config: RunConfig) -> RunConfig:
    """Leave it to pods to claim the attempt."""
    own = config.volume.attempt_dir(config.run.stage, 1)
    for claim in (*own.glob("claims/*"), *own.glob("shards/*/*/claim")):
        claim.unlink()
    return config


def attempt_of(config: RunConfig, number: int) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"attempt": number})})


@pytest.fixture
def training(tmp_path: Path, toy_model_dir: Path, port: int) -> Make:
    samples = make_dataset(tmp_path / "dataset")[:16]
    config = unclaim(
        make_training(
            tmp_path, toy_model_dir, samples, training={"epochs": 3, "checkpoint": {"everySteps": 2, "keep": 2}},
            workers={"rendezvousPort": port},
        )
    )  # fmt: skip

    def make(number: int) -> RunConfig:
        # The old pod's launcher still holds its port.
        workers = config.workers.model_copy(update={"rendezvous_port": port if number == 1 else free_port()})
        return attempt_of(config, number).model_copy(update={"workers": workers})

    return make


@pytest.fixture
def preparing(tmp_path: Path, toy_model_dir: Path) -> Make:
    for number in range(4):
        draw_image(tmp_path / "dataset" / "images" / f"{number}.png", seed=number)
    entries = [conversation(f"{number}.png", [("What?", f"Number {number}.")]) for number in range(4)]
    write_json(tmp_path / "dataset" / "export.json", entries)
    config = unclaim(prepare_config(tmp_path, toy_model_dir))
    return lambda number: attempt_of(config, number)


@pytest.fixture
def merging(tmp_path: Path) -> Make:
    config = unclaim(make_run(tmp_path))
    return lambda number: attempt_of(config, number)


@pytest.fixture
def evaluating(merging: Make, tmp_path: Path) -> Make:
    with Pod(merging(1), "merge") as merge:
        assert merge.wait() == 0, merge.output
    config = unclaim(run_config(tmp_path, StageName.EVALUATE))
    return lambda number: attempt_of(config, number)


@pytest.mark.parametrize(
    ("stage", "before", "made"),
    [
        # In mid-checkpoint: the ranks' files are there, and they are about to become one.
        ("training", r"checkpoints/step-00000004$", "adapter"),
        ("training", r"attempts/train-1/adapter$", "adapter"),
        ("training", r"train-1/result\.json$", "adapter"),
        ("preparing", r"data/train\.jsonl$", "data"),
        ("preparing", r"prepare-1/result\.json$", "data"),
        ("merging", r"attempts/merge-1/merged$", "merged"),
        ("evaluating", r"attempts/evaluate-1/evaluation$", "evaluation"),
    ],
)
def test_what_a_later_attempt_has_made_stays_as_it_is(
    stage: str, before: str, made: str, request: pytest.FixtureRequest
):
    make: Make = request.getfixturevalue(stage)
    old, new = make(1), make(2)
    with Pod(old, "old", stop_before=before) as outlived:
        outlived.await_stop()
        with Pod(new, "new") as later:
            assert later.wait() == 0, later.output
            result = later.result
        contents = list_contents(new.volume_root)
        outlived.go_on()
        code = outlived.wait()
        assert code == SUPERSEDED, outlived.output
        failure = outlived.result.failure
    assert list_contents(new.volume_root) == contents
    assert failure.reason is Reason.SUPERSEDED
    own = f"attempts/{new.run.stage}-2"
    assert contents[made] == f"-> {own}/{made}"
    assert not [name for name in contents if re.match(rf"attempts/{new.run.stage}-1|{own}/before", name)]
    assert result.attempt == 2
    if made in result.digests:
        assert result.digests[made] == sha256_folder(new.volume_root / made)


def test_an_old_pod_that_goes_on_while_the_next_attempt_trains_changes_nothing_of_it(training: Make):
    """What it has taken over lies in its folder then, checkpoints to go on from among it."""
    old, new = training(1), training(2)
    # The first checkpoint is there, the second is about to be.
    with Pod(old, "old", stop_before=r"step-00000004\.partial/manifest\.json$") as outlived:
        outlived.await_stop()
        with Pod(new, "new", stop_before=r"checkpoints/step-00000004$") as later:
            later.await_stop()
            contents = list_contents(new.volume_root)
            outlived.go_on()
            assert outlived.wait() == SUPERSEDED, outlived.output
            after = list_contents(new.volume_root)
            later.go_on()
            assert later.wait() == 0, later.output
            assert "before/train-1/checkpoints/step-00000002, after step 2 of 6" in later.output
    # torch's launcher writes what it has to say to the log that it has open.
    assert {name for name in contents.keys() | after.keys() if contents.get(name) != after.get(name)} <= {
        f"attempts/train-2/before/train-1/logs/{name}" for name in ("launcher-0.log", "rank-0.log")
    }
    assert "attempts/train-2/before/train-1/checkpoints/step-00000002/manifest.json" in after
    curve = [entry.step for entry in read_curve(new.volume.history_file(StageName.TRAIN, 2))]
    assert curve == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in list_checkpoints(new.volume.checkpoints_dir(StageName.TRAIN, 2))] == ["step-00000004"]


def test_an_old_pod_that_starts_when_the_next_attempt_has_begun_ends_at_once(preparing: Make):
    """It was scheduled late, or its container starts again."""
    with Pod(preparing(2), "new") as later:
        assert later.wait() == 0, later.output
    contents = list_contents(preparing(2).volume_root)
    with Pod(preparing(1), "old") as late:
        assert late.wait() == SUPERSEDED
        assert "attempt 2 has begun" in late.result.failure.message
    assert list_contents(preparing(2).volume_root) == contents


def test_the_same_job_started_again_leaves_the_attempt_to_its_first_pods(training: Make):
    """As Kueue does it: a pod of the first set may still be writing."""
    config = training(1)
    with Pod(config, "first", stop_before=r"checkpoints/step-00000002$") as first:
        first.await_stop()
        contents = list_contents(config.volume_root)
        with Pod(config, "second") as second:
            assert second.wait() == exit_code_of(Reason.ATTEMPT_USED) == 85
            failure = second.result.failure
        assert list_contents(config.volume_root) == contents
        first.go_on()
        assert first.wait() == 0, first.output
    assert failure.reason is Reason.ATTEMPT_USED
    assert "was claimed by pod first, and this is second: attempt 1 of train has run before" in failure.message


def test_logs_of_earlier_attempts_stay_for_people(preparing: Make):
    with Pod(preparing(1), "old", stop_before=r"data/report\.json$") as outlived:
        outlived.await_stop()
    with Pod(preparing(2), "new") as later:
        assert later.wait() == 0, later.output
    kept = preparing(2).volume.log_dir(StageName.PREPARE, 2) / "prepare-1" / "rank-0.log"
    assert "prepare of team-a/receipts, attempt 1" in kept.read_text()


def test_a_training_that_the_operator_has_given_up_ends_by_itself(training: Make, tmp_path: Path, authority: Authority):
    """Before another attempt has begun: its reports were accepted, and now they are answered 409."""
    with Operator().run(authority) as operator:
        (tmp_path / "token").write_text("token")
        reporting = Reporting(url=f"{operator.base}/", ca_file=authority.ca_file, token_file=tmp_path / "token")
        config = training(1).model_copy(
            update={
                "reporting": reporting,
                "training": training(1).training.model_copy(update={"epochs": 1000}),
            }
        )
        with Pod(config, "given-up") as pod:
            await_that(lambda: operator.num_reports > 2, pod)
            operator.status = 409
            assert pod.wait() == SUPERSEDED, pod.output
            failure = pod.result.failure
    assert failure.reason is Reason.SUPERSEDED
    own = config.volume.attempt_dir(StageName.TRAIN, 1)
    assert not (own / "ranks" / "rank-0.json").exists()
    assert not (own / "adapter").exists()
