"""Whatever a status, a pod or a termination message holds: the operator goes on, and what it writes is a status.

What reaches the cache is thrown at it in ``test_children``, a whole process is attacked in ``tests/cluster``.
"""

import functools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from llava_api.constants import STAGES, StageName
from llava_api.report import StageResult
from llava_api.status import Status
from llava_operator.acting.events import build_event
from llava_operator.acting.transitions import list_transitions
from llava_operator.cache.runs import Runs
from llava_operator.cache.views import Termination
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Commit
from llava_operator.deciding.status import dump_status
from llava_operator.run import UnreadableError, parse_status
from tests.controller.exposed import expose
from tests.controller.makers import (
    KEY,
    NOW_TEXT,
    RESULTS,
    RUN_UID,
    begun,
    job_end,
    make_job,
    make_pod,
    see,
    succeeded,
    walk,
)
from tests.controller.test_children import JSON

TEXT = st.text(st.characters(), max_size=60) | st.sampled_from(
    ["\ud800", "\x00", "\u202e", "ü" * 5000, "-1", "NaN", "1e999"]
)
TIMES = st.sampled_from(
    ["2026-11-01T12:00:00Z", "2026-11-01t12:00:00z", "2026-02-30T12:00:00Z", "0000-01-01T00:00:00Z",
     "2026-11-01T12:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-01", ""]
)  # fmt: skip


@pytest.mark.parametrize("text", ["2026-02-30T12:00:00Z", "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00",
                                  "2026-11-01T12:00:00", "soon", ""])  # fmt: skip
def test_time_that_is_no_instant_makes_a_status_unreadable(text: str) -> None:
    """The API server's date-time lets some of them through; one of them in a metric would take all metrics away."""
    with pytest.raises(UnreadableError, match=r"status\.startTime: .*no instant"):
        parse_status({"status": {"startTime": text}})


@st.composite
def statuses(draw: st.DrawFn) -> dict[str, Any]:
    """A status as one with the right to write it may leave it: near to a real one, with values of all kinds."""
    status = dump_status(begun(draw(st.sampled_from([StageName.PREPARE, StageName.TRAIN, StageName.EVALUATE]))))
    numbers = st.integers(-(2**70), 2**70) | st.floats() | TEXT
    status |= draw(st.fixed_dictionaries({}, optional={"startTime": TIMES, "completionTime": TIMES, "phase": TEXT}))
    status |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "progress": st.fixed_dictionaries(
                    {"stage": st.sampled_from(STAGES), "attempt": st.just(1), "podUid": TEXT, "step": numbers,
                     "totalSteps": numbers, "lastUpdateTime": TIMES},
                    optional={"loss": numbers, "epoch": numbers, "etaSeconds": numbers, "message": TEXT},
                ),
                "failure": st.fixed_dictionaries({"reason": TEXT}, optional={"stage": TEXT, "message": TEXT}),
                "evaluation": JSON,
                "artifacts": JSON,
                "summary": JSON,
            },
        )
    )  # fmt: skip
    for stage in status["stages"]:
        stage |= draw(
            st.fixed_dictionaries({}, optional={"startTime": TIMES, "completionTime": TIMES, "message": TEXT})
        )
    return status


@settings(max_examples=200, deadline=None)
@given(statuses())
def test_no_status_takes_the_metrics_or_the_events_of_others_away(status: dict[str, Any]) -> None:
    runs = Runs()
    for name, content in (("attacked", status), ("other", dump_status(begun()))):
        runs.note({"metadata": {"namespace": "ns", "name": name, "uid": name}, "status": content})
    text = expose(*runs)
    assert 'llava_run_phase{name="other",namespace="ns",phase="Pending"} 1.0' in text
    assert {family.name: family for family in text_string_to_metric_families(text)}
    for view in runs:
        for transition in list_transitions(view.status):
            assert len(build_event(KEY, RUN_UID, transition, "op")["note"].encode()) <= 1024


RESULT_LIKE = st.one_of(
    TEXT,
    st.sampled_from(list(RESULTS.values())).map(StageResult.to_termination_message),
    st.fixed_dictionaries(
        {"stage": st.sampled_from(STAGES), "attempt": st.just(1)},
        optional={
            "failure": st.fixed_dictionaries(
                {"reason": st.sampled_from(["WorkerKilled", "InvalidData"]), "message": TEXT},
                optional={"rank": st.integers(), "logTail": TEXT},
            ),
            "digests": st.dictionaries(TEXT, TEXT, max_size=3),
            "prepare": JSON, "train": JSON, "merge": JSON, "evaluate": JSON,
        },
    ).map(json.dumps),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([StageName.PREPARE, StageName.TRAIN, StageName.MERGE, StageName.EVALUATE]),
    RESULT_LIKE,
    st.integers(-(2**31), 2**31 - 1),
    TEXT,
    st.sampled_from(["complete", "failed", "failing", "running"]),
)
def test_every_termination_message_leads_to_a_status(
    stage: StageName, message: str, exit_code: int, reason: str, end: str
) -> None:
    status = begun(stage)
    changes: dict[str, Any] = {"complete": end == "complete"}
    if end in ("failed", "failing"):
        changes[end] = job_end(reason)
    ended = Termination(exit_code=exit_code, reason=reason, message=message, finished_at=NOW_TEXT)
    pod = make_pod(phase="Failed" if exit_code else "Succeeded", started=True, ended=ended, trouble=reason)
    decision = decide(see(status, job=make_job(status, **changes), pods=(pod,)))
    if isinstance(decision, Commit):
        written = dump_status(decision.status)
        assert Status.model_validate(written) == decision.status
        assert all(len(condition["message"]) <= 4096 for condition in written["conditions"])


PUBLISHING: dict[str, Any] = {"publish": {"destinations": [{"address": "s3://models/llava"}]}}
PUBLISHED = st.fixed_dictionaries(
    {
        "destination": st.sampled_from([0, 0, 1, -1, 2**70]), "what": st.sampled_from(["merged", "adapter", ""]),
        "digest": st.just(f"sha256:{'d' * 64}") | TEXT, "sizeBytes": st.sampled_from([0, 2**62, 2**63, -1, 0.5, None]),
        "sentBytes": st.integers(0, 9),
    },
    optional={"revision": TEXT},
)  # fmt: skip
REAL = {stage: json.loads(result.to_termination_message()) for stage, result in RESULTS.items()}
PARTS = {
    **{stage: st.just(told.get(stage)) | JSON for stage, told in REAL.items()},
    StageName.PUBLISH: st.fixed_dictionaries({"published": st.lists(PUBLISHED, max_size=2)}) | JSON,
    "digests": st.dictionaries(TEXT, TEXT, max_size=3) | st.just({f"d{n}": "" for n in range(33)}),
}


@functools.cache
def _walk(stage: StageName) -> Status:
    return walk(PUBLISHING, stage)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([stage for stage in RESULTS if stage is not StageName.ALIGN]),
    st.fixed_dictionaries({}, optional=PARTS),
)
def test_whatever_a_stage_that_ended_well_says_leads_to_a_status(stage: StageName, parts: dict[str, Any]) -> None:
    """An image of the run's author hands back what it likes, also what belongs to another stage, or nothing."""
    status = _walk(stage)
    pod = succeeded(stage, json.dumps({"stage": stage, "attempt": 1, **parts}))
    decision = decide(see(status, spec=PUBLISHING, job=make_job(status, complete=True), pods=(pod,)))
    assert isinstance(decision, Commit)
    assert Status.model_validate(dump_status(decision.status)) == decision.status
