"""What goes wrong on a real cluster, and what a person sees then."""

import json

import pytest

from llava_api.constants import Condition, Phase, StageName
from llava_api.failures import Reason
from llava_api.status import StageState
from tests.e2e.faults.operators import operator_down
from tests.e2e.runs import BAD_PATH, Runs, stage_states
from tests.kubectl import wait_for

pytestmark = pytest.mark.e2e

LONG = 400
_CHILDREN_GONE_S = 60


def test_bad_data_fails_before_anything_trains(runs: Runs) -> None:
    runs.start("bad", data=BAD_PATH)
    status = runs.wait_for_end("bad")
    assert status.phase is Phase.FAILED
    failure = status.failure
    assert failure is not None
    assert failure.reason == Reason.INVALID_DATA
    assert failure.stage is StageName.PREPARE
    assert "export.json[3]" in failure.message
    assert "tray-0003.png" in failure.message
    assert "export.json[7]" in failure.message
    assert "tray-0007.png" in failure.message
    assert failure.hint
    assert stage_states(status)[StageName.TRAIN] is StageState.PENDING
    assert not runs.kubectl.list("pods,jobs", "-l", "finetune.llava.dev/run=bad,finetune.llava.dev/stage=train")
    runs.kubectl.run("wait", "--for=condition=Failed", "lft/bad", "--timeout=5s")
    runs.delete("bad")
    runs.wait_until_gone("bad", _CHILDREN_GONE_S)


def test_killed_trainer_fails_the_run_with_a_reason(runs: Runs) -> None:
    runs.start("killed", epochs=LONG, training={"maxRestarts": 0})
    runs.wait_for_step("killed", 5)
    runs.kill_trainer("killed", rank=1)
    status = runs.wait_for_end("killed", timeout_s=120)
    failure = status.failure
    assert failure is not None
    assert failure.reason == Reason.WORKER_KILLED
    assert failure.stage is StageName.TRAIN
    assert failure.rank == 1
    assert "SIGKILL" in failure.message
    assert failure.hint
    wait_for(
        "every pod of the failed run to end",
        lambda: all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in runs.pods("killed")),
        timeout_s=60,
    )
    runs.delete("killed")
    runs.wait_until_gone("killed", _CHILDREN_GONE_S)


@pytest.mark.parametrize("stage", [StageName.PREPARE, StageName.TRAIN, StageName.MERGE, StageName.EVALUATE])
def test_run_deleted_in_a_stage_leaves_nothing(runs: Runs, stage: StageName) -> None:
    name = f"gone-{stage}"
    runs.start(name, epochs=LONG if stage is StageName.TRAIN else 1)
    runs.wait_for_stage(name, stage)
    runs.delete(name)
    runs.wait_until_gone(name, _CHILDREN_GONE_S)


def test_run_deleted_while_the_operator_is_down_is_gone_at_once(runs: Runs) -> None:
    runs.start("orphan", epochs=LONG)
    runs.wait_for_stage("orphan", StageName.TRAIN)
    with operator_down(runs):
        runs.delete("orphan")
        runs.wait_until_gone("orphan", _CHILDREN_GONE_S)


def test_conditions_say_why(runs: Runs) -> None:
    """What `kubectl describe` and GitOps tools read."""
    runs.start("why", data="nowhere")
    status = runs.wait_for_end("why")
    failed = next(condition for condition in status.conditions if condition.type is Condition.FAILED)
    assert (failed.status, failed.reason) == ("True", Reason.SOURCE_REFUSED)
    assert "nowhere" in json.dumps(status.model_dump(mode="json"))
    ready = next(condition for condition in status.conditions if condition.type is Condition.READY)
    assert ready.status == "False"
    runs.delete("why")
