"""Who is told of what was published, or was not: notifications and metrics."""

from typing import Any

import pytest

from llava_api.constants import GateOutcome, NotificationEvent, StageName
from llava_api.report import StageFailure, StageResult
from llava_api.status import StageState, Status
from llava_operator.build.event import build_event
from llava_operator.cache.runs import RunView
from tests.controller.exposed import expose
from tests.controller.makers import KEY, RUN_UID, commit, failed, job_end, make_job, make_run, see, walk
from tests.controller.test_gates import judge, result, write_again
from tests.controller.test_publication import BUCKET, CONTENTS, EVERYWHERE, GATES, ONE, end_with, evaluated, published

PUBLISH = StageName.PUBLISH
EVERY_EVENT = tuple(NotificationEvent)


def telling(*events: str) -> dict[str, Any]:
    return {"notifications": [{"name": "team", "events": list(events), "webhook": {"url": "https://h.example"}}]}


def events_of(status: Status) -> list[str]:
    return [one.event for one in status.notifications]


def test_whoever_asks_is_told_where_it_stands() -> None:
    spec = {**ONE, **telling(*EVERY_EVENT)}
    status = end_with(published((0, "merged")), spec)
    assert events_of(status) == ["Succeeded", "Published"]
    told = status.notifications[-1]
    assert (told.reason, told.stage, told.attempt) == ("Published", PUBLISH, 1)
    assert told.message == f"published to {BUCKET['address']} (merged, 1.0Gi sent)"
    assert events_of(write_again(status, **spec)) == ["Succeeded", "Published"]
    event = build_event(make_run(status, **spec), told)
    assert event.type == "dev.llava.finetune.run.published.v1"
    assert [one.address for one in event.data.artifacts.published] == [BUCKET["address"]]
    assert event.data.artifacts.published[0].digest.startswith("sha256:")


@pytest.mark.parametrize("outcome", [GateOutcome.FAILED, GateOutcome.UNDECIDED])
def test_that_a_gate_has_held_it_back_is_told_once(outcome: GateOutcome) -> None:
    """By whichever event the receiver has asked for; one that has asked for both hears of the gate."""
    held = {**ONE, "evaluation": GATES["gate"]}
    gate = f"Gate{outcome}"
    status = evaluated({**held, **telling("NotPublished")}, result(judge(outcome)))
    [told] = status.notifications
    assert (told.event, told.reason, told.stage, told.attempt) == ("NotPublished", gate, PUBLISH, 0)
    assert told.message.startswith("not published, since a gate has not passed")
    assert events_of(write_again(status, **held, **telling("NotPublished"))) == ["NotPublished"]
    assert events_of(evaluated({**held, **telling("NotPublished", gate)}, result(judge(outcome)))) == [gate]
    another = "GateUndecided" if outcome is GateOutcome.FAILED else "GateFailed"
    told_alone = evaluated({**held, **telling("NotPublished", another)}, result(judge(outcome)))
    assert events_of(told_alone) == ["NotPublished"], "that event does not come"


def test_nobody_is_told_of_what_was_not_asked_for() -> None:
    assert events_of(walk(telling("Published", "NotPublished"))) == [], "without spec.publish"
    spec = {**ONE, "evaluation": GATES["gate"], **telling("Published", "NotPublished")}
    assert events_of(evaluated(spec, result(judge(GateOutcome.PASSED)))) == [], "it is only about to be"


def test_a_receiver_that_comes_later_is_not_told() -> None:
    stands = end_with(published((0, "merged")), ONE)
    assert write_again(stands, **ONE, **telling("Published")).notifications == ()
    held = {**ONE, "evaluation": GATES["gate"]}
    skipped = evaluated(held, result(judge(GateOutcome.FAILED)))
    assert write_again(skipped, **held, **telling("NotPublished")).notifications == ()


def test_publishing_that_fails_for_good_is_a_failed_run() -> None:
    spec = {**ONE, **telling(*EVERY_EVENT)}
    status = walk(spec, PUBLISH)
    refused = StageResult(
        stage=PUBLISH, attempt=1, failure=StageFailure(reason="DestinationRefused", message="holds another model")
    )
    pods = (failed(exit_code=90, message=refused.to_termination_message(), stage=PUBLISH),)
    status = commit(see(status, spec=spec, job=make_job(status, failed=job_end()), pods=pods))
    assert [(one.event, one.reason, one.stage) for one in status.notifications] == [
        ("Failed", "DestinationRefused", PUBLISH)
    ]


def samples(status: Status) -> dict[str, float]:
    lines = expose(RunView(key=KEY, uid=RUN_UID, status=status)).splitlines()
    told = (line.split("{", maxsplit=1)[1] for line in lines if line.startswith("llava_run_published_bytes{"))
    return {
        labels.partition(',scheme="')[2]: float(value) for labels, _, value in (one.rpartition(" ") for one in told)
    }


def test_metrics_tell_what_stands_at_destinations_of_each_kind() -> None:
    spec = {"publish": {**EVERYWHERE["publish"], "destinations": [
        {"address": "s3://models/llava"}, {"address": "s3://backup/llava"}, {"address": "hf://team/invoices"},
        {"address": "pvc://models/llava"},
    ]}}  # fmt: skip
    status = end_with(published(*CONTENTS), spec)
    both = {f'{scheme}",what="{what}"}}': size for scheme, size in (("s3", 2**32), ("hf", 2**31), ("pvc", 2**31))
            for what in ("merged", "adapter")}  # fmt: skip
    assert samples(status) == both
    assert samples(walk(ONE, PUBLISH)) == {}, "nothing stands anywhere yet"
    assert samples(Status()) == {}


def test_metrics_tell_that_it_was_left_out() -> None:
    status = evaluated({**ONE, "evaluation": GATES["gate"]}, result(judge(GateOutcome.FAILED)))
    lines = expose(RunView(key=KEY, uid=RUN_UID, status=status)).splitlines()
    [told] = [line for line in lines if line.startswith("llava_run_stage_state{") and 'stage="publish"' in line]
    assert f'state="{StageState.SKIPPED}"' in told
