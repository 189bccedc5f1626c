"""What is told of runs: every family of the contract, at every point of a run's life, in the client's own words."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Sample
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llava_api.constants import Phase, StageName
from llava_api.status import Accounting, AttemptSettings, AttemptState, FailureStatus, ShardStatus, Status
from llava_operator.cache.runs import Runs, RunView
from llava_operator.clock import to_time
from llava_operator.deciding.moves import change_newest
from llava_operator.deciding.status import dump_status
from llava_operator.run import stage_of
from llava_operator.telemetry.contract import PREFIX_RUN, RUN_FAMILIES
from llava_operator.telemetry.run_samples import SAMPLERS
from tests.controller.crowds import GIB, PLAN, crowd, ended, make_object, report, training
from tests.controller.exposed import SHOWN_S, AllAtOnce, expose
from tests.controller.makers import (
    KEY,
    NOW,
    ONCE,
    RUN_UID,
    begun,
    commit,
    failed,
    job_end,
    make_job,
    see,
    succeeded,
)  # fmt: skip

TRAIN = StageName.TRAIN
HOUR = NOW + timedelta(hours=1)
WHO = {"namespace": "team", "name": "invoices"}


def view(status: Status, **meta: Any) -> RunView:
    """A run as the cache has it."""
    runs = Runs()
    runs.note(make_object(KEY.namespace, KEY.name, dump_status(status), **meta))
    (one,) = runs
    return one


def samples(text: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def told(status: Status, name: str, *, after: timedelta = timedelta(minutes=59)) -> dict[tuple[str, ...], float]:
    """Values of a family about one run, by its own labels' values."""
    (family,) = (family for family in RUN_FAMILIES if family.name == PREFIX_RUN + name)
    found = [sample for sample in samples(expose(view(status), now=NOW + after)) if sample.name == family.name]
    assert all({label: sample.labels[label] for label in WHO} == WHO for sample in found)
    assert all(set(sample.labels) == set(family.labels) for sample in found)
    return {tuple(sample.labels[label] for label in family.labels[2:]): sample.value for sample in found}


def lost() -> Status:
    """A run that has failed."""
    status = begun(TRAIN)
    return commit(see(status, spec=ONCE, job=make_job(status, failed=job_end()), pods=(failed(exit_code=67),)))


def test_every_family_has_its_sampler_and_is_told_of() -> None:
    assert list(SAMPLERS) == [family.name.removeprefix(PREFIX_RUN) for family in RUN_FAMILIES]
    text = expose(*(view(status) for status in (training(), ended(), lost())), now=HOUR - timedelta(seconds=1))
    lines = text.splitlines()
    for family in RUN_FAMILIES:
        assert f"# HELP {family.name} {family.help}" in lines
        assert f"# TYPE {family.name} {'gauge' if family.kind == 'info' else family.kind}" in lines
    assert {sample.name for sample in samples(text)} == {family.name for family in RUN_FAMILIES}


HOSTILE = 'a "quoted"\nline \\n of # {} é \u2028'


def test_the_text_says_what_the_clients_own_would_say() -> None:
    runs = [*crowd(num_training=70, num_ended=70, ended_at=HOUR)]
    broken = lost().model_copy(update={"failure": FailureStatus(reason=HOSTILE)})
    broken = broken.model_copy(update={"accounting": Accounting(restarts_by_reason={HOSTILE: 2**53})})
    runs += [RunView(key=KEY, uid=RUN_UID, status=broken), RunView(key=KEY, uid=RUN_UID, status=Status())]
    registry = CollectorRegistry()
    registry.register(AllAtOnce(runs, HOUR))
    mine, its = expose(*runs, now=HOUR), generate_latest(registry).decode()
    assert HOSTILE in {sample.labels.get("reason") for sample in samples(mine)}
    assert [*text_string_to_metric_families(mine)] == [*text_string_to_metric_families(its)]
    assert mine.splitlines() == its.splitlines()


# --- what it is and how far it is


def test_whose_a_run_is_and_what_it_learns() -> None:
    (info,) = (sample for sample in samples(expose(view(begun()))) if sample.name == "llava_run_info")
    assert info.labels == {**WHO, "team": "team", "method": "lora"}
    assert told(begun(), "created_timestamp_seconds") == {(): NOW.timestamp()}


@pytest.mark.parametrize("labels", [None, {}, {"team": HOSTILE}, {"team": "a" * 64}, {"team": 7}, {"Team": "vision"}])
def test_what_is_no_label_value_is_no_team(labels: object) -> None:
    """The API server takes none of these but the last; a fake one might, and all runs share one text."""
    assert view(begun(), labels=labels).team == ""


def test_the_installation_names_the_label() -> None:
    runs = Runs(team_label="example.com/group")
    runs.note(make_object("ns", "run", {}, labels={"example.com/group": "vision", "team": "other"}))
    assert [run.team for run in runs] == ["vision"]
    nameless = Runs(team_label="")
    nameless.note(make_object("ns", "run", {}, labels={"team": "other"}))
    assert [run.team for run in nameless] == [""]


def test_completed_run() -> None:
    status = begun(StageName.EVALUATE)
    done = commit(see(status, job=make_job(status, complete=True), pods=(succeeded(StageName.EVALUATE),)))
    assert told(done, "phase") == {("Succeeded",): 1}
    assert told(done, "stage_state")["merge", "Succeeded"] == 1
    assert told(done, "completion_timestamp_seconds") == {(): NOW.timestamp()}
    assert told(done, "score")["exact_match", "validation", "base"] == 0.02
    assert told(done, "score")["exact_match", "validation", "tuned"] == 0.97
    assert told(done, "failure") == {}


def test_failed_run() -> None:
    assert told(lost(), "phase") == {("Failed",): 1}
    assert told(lost(), "failure") == {("train", "LossNotFinite"): 1}
    assert told(lost(), "attempts_ended") == {("LossNotFinite",): 1}
    assert told(lost(), "restarts")[("train",)] == 1


def test_run_without_status_is_pending() -> None:
    assert told(Status(), "phase") == {("Pending",): 1}
    assert told(Status(), "queued_seconds") == {(): 0}


def test_what_a_stage_waits_for_and_since_when() -> None:
    assert told(training(), "waiting_timestamp_seconds") == {("train", "Unschedulable"): NOW.timestamp()}
    assert told(begun(TRAIN), "waiting_timestamp_seconds") == {}
    assert told(lost(), "waiting_timestamp_seconds") == {}


def test_attempts() -> None:
    assert told(training(), "attempt") == {("prepare",): 1, ("train",): 2}
    assert told(training(), "attempt_start_timestamp_seconds")[("train",)] == HOUR.timestamp()
    assert told(training(), "restarts") == {("prepare",): 0, ("train",): 1}
    assert told(training(), "attempts_ended") == {("WorkerKilled",): 1}
    assert told(training(), "stage_duration_seconds")[("train",)] == 59 * 60


# --- progress


def with_report(**changes: Any) -> Status:
    return training().model_copy(update={"progress": report(**changes)})


def test_what_a_report_says() -> None:
    status = training()
    assert told(status, "step") == {("train",): 120}
    assert told(status, "planned_steps") == {("train",): 734}
    assert told(status, "progress_ratio") == {("train",): pytest.approx(120 / 734)}
    assert told(status, "eta_seconds") == {("train",): 2460}
    for name, value in {
        "epoch": 0.16, "loss": 1.5, "learning_rate": 2e-4, "gradient_norm": 0.75, "tokens_per_second": 8000,
        "samples_per_second": 12.5, "checkpoint_step": 100, "checkpoint_timestamp_seconds": NOW.timestamp(),
        "progress_timestamp_seconds": NOW.timestamp(), "peak_gpu_memory_bytes": 60 * GIB,
        "volume_free_bytes": 150 * GIB, "volume_size_bytes": 200 * GIB,
    }.items():  # fmt: skip
        assert told(status, name) == {(): value}, name


def test_what_a_report_leaves_out_is_no_series() -> None:
    status = training().model_copy(update={"progress": begun().progress})
    fields = (
        "eta_seconds", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "samples_per_second",
        "checkpoint_step", "checkpoint_time", "peak_gpu_memory_bytes", "volume_free_bytes", "volume_size_bytes",
    )  # fmt: skip
    nothing = with_report(**dict.fromkeys(fields))
    for name in ("eta_seconds", "epoch", "loss", "learning_rate", "gradient_norm", "tokens_per_second",
                 "samples_per_second", "checkpoint_step", "checkpoint_timestamp_seconds", "peak_gpu_memory_bytes",
                 "volume_free_bytes", "volume_size_bytes"):  # fmt: skip
        assert told(status, name) == told(nothing, name) == {}, name
    assert told(with_report(total_steps=0), "planned_steps") == told(with_report(total_steps=0), "progress_ratio") == {}
    assert told(with_report(step=800), "progress_ratio") == {("train",): 1}


def test_bytes_that_are_fetched_are_no_steps() -> None:
    status = with_report(unit="bytes")
    assert told(status, "step") == told(status, "planned_steps") == {}
    assert told(status, "progress_ratio") == {("train",): pytest.approx(120 / 734)}
    assert told(status, "progress_timestamp_seconds") == {(): NOW.timestamp()}


@pytest.mark.parametrize(
    "status",
    [
        with_report(attempt=1),
        with_report(stage=StageName.PREPARE),
        change_newest(training(), stage_of(training(), TRAIN), state=AttemptState.GONE),
        ended(),
    ],
    ids=["another attempt", "another stage", "the attempt is gone", "the run has ended"],
)
def test_a_speed_is_told_while_it_lasts(status: Status) -> None:
    """A sum over runs would count what is long over."""
    for name in ("eta_seconds", "tokens_per_second", "samples_per_second"):
        assert told(status, name, after=timedelta()) == {}, name
    assert told(status, "loss", after=timedelta()) == {(): 1.5}


# --- what it takes


@pytest.mark.parametrize(
    ("state", "running_time", "held", "asked"),
    [
        (AttemptState.QUEUED, None, 0, 8),
        (AttemptState.STARTING, None, 0, 8),
        (AttemptState.RUNNING, to_time(NOW), 8, 0),
        (AttemptState.STOPPING, to_time(NOW), 8, 0),
        (AttemptState.STOPPING, None, 0, 0),
    ],
)
def test_gpus_are_held_or_waited_for(state: AttemptState, running_time: str | None, held: int, asked: int) -> None:
    status = change_newest(training(), stage_of(training(), TRAIN), state=state, running_time=running_time)
    assert told(status, "gpus") == {("train",): held}
    assert told(status, "requested_gpus") == {("train",): asked}


def test_pods_of_an_evaluation_give_their_gpus_back_one_by_one() -> None:
    status = change_newest(
        training(), stage_of(training(), TRAIN), settings=AttemptSettings(replicas=4, gpus=1),
        running_time=to_time(NOW), shards=ShardStatus(done=3), state=AttemptState.RUNNING,
    )  # fmt: skip
    assert told(status, "gpus") == {("train",): 1}


def test_nobody_holds_gpus_between_attempts_and_afterwards() -> None:
    between = change_newest(training(), stage_of(training(), TRAIN), state=AttemptState.GONE)
    for status in (between, ended(), lost(), Status()):
        assert told(status, "gpus") == told(status, "requested_gpus") == {}


def test_gpu_seconds_grow_while_gpus_are_held() -> None:
    status = training()
    lost_s = 8 * 600
    # The second attempt began after an hour, and a pod of it ran at once.
    assert told(status, "gpu_seconds") == {("train",): lost_s}
    assert told(status, "gpu_seconds", after=timedelta(hours=2)) == {("train",): lost_s + 8 * 3600}
    assert told(status, "lost_gpu_seconds", after=timedelta(hours=2)) == {(): lost_s}
    assert told(status, "productive_gpu_seconds") == {(): 0}
    assert told(status, "lost_seconds") == {(): 600}


def test_waiting_in_a_queue_and_a_suspension_grow_as_well() -> None:
    settings = AttemptSettings(queue="gpus")
    status = change_newest(training(), stage_of(training(), TRAIN), state=AttemptState.QUEUED, settings=settings,
                           start_time=to_time(NOW), admitted_time=None, running_time=None)  # fmt: skip
    assert told(status, "queued_seconds", after=timedelta(minutes=5)) == {(): 300}
    suspended = status.model_copy(update={"suspended_time": to_time(NOW), "phase": Phase.SUSPENDED})
    assert told(suspended, "suspended_seconds", after=timedelta(minutes=5)) == {(): 300}
    assert told(suspended, "suspended_seconds", after=timedelta(minutes=6)) == {(): 360}


def test_the_plan() -> None:
    assert told(training(), "planned_gpu_memory_bytes") == {(): round(61.3 * GIB)}
    assert told(training(), "available_gpu_memory_bytes") == {(): round(79.6 * GIB)}
    assert told(training(), "planned_pod_memory_bytes") == {(): round(24.3 * GIB)}


@pytest.mark.parametrize("text", ["1e999999999Gi", "61.3", "-1.0Gi", "nanGi", "", "1" * 200 + ".0Gi"])
def test_a_plan_that_was_tampered_with_is_passed_over(text: str) -> None:
    status = training().model_copy(update={"plan": PLAN.model_copy(update={"device_memory": text})})
    assert told(status, "planned_gpu_memory_bytes") == {}


# --- how many


def test_series_of_runs_that_have_ended_go() -> None:
    done = view(ended().model_copy(update={"completion_time": to_time(NOW)}))
    assert samples(expose(done, now=NOW + timedelta(seconds=SHOWN_S - 1)))
    assert not samples(expose(done, now=NOW + timedelta(seconds=SHOWN_S)))
    # One that is tried again is told of again.
    again = replace(done, ended_at=None)
    assert samples(expose(again, now=NOW + timedelta(seconds=SHOWN_S)))


@pytest.mark.parametrize(
    ("num_training", "num_ended", "ended_at", "num_series"),
    [(1000, 0, NOW, 52_000), (50, 950, NOW, 2_600), (50, 950, HOUR, 61_500)],
    ids=["all train", "ended long ago", "ended just now"],
)
def test_series_at_a_thousand_runs(num_training: int, num_ended: int, ended_at: Any, num_series: int) -> None:
    """At most, that is: a run that trains has 52, and each that has ended 62 until its time is over."""
    runs = crowd(num_training=num_training, num_ended=num_ended, ended_at=ended_at)
    text = expose(*runs, now=HOUR)
    assert sum(not line.startswith("#") for line in text.splitlines()) == num_series
