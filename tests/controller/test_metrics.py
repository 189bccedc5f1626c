"""The list of metrics is frozen: dashboards and alerts are made of these names."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from llava_api.constants import StageName
from llava_api.status import Progress
from llava_operator.cache.runs import RunView
from llava_operator.telemetry.metrics import OperatorMetrics, RunCollector
from tests.controller.makers import (
    KEY,
    NOW,
    NOW_TEXT,
    RUN_UID,
    begun,
    commit,
    failed,
    job_end,
    make_job,
    see,
    succeeded,
)

FROZEN = {
    "llava_operator_connections_closed_total": "counter",
    "llava_operator_notifications_total": "counter",
    "llava_operator_leader": "gauge",
    "llava_operator_objects_skipped_total": "counter",
    "llava_operator_pass_duration_seconds": "histogram",
    "llava_operator_pass_errors_total": "counter",
    "llava_operator_queue_depth": "gauge",
    "llava_operator_reports_total": "counter",
    "llava_run_failure": "gauge",
    "llava_run_attempts_ended": "gauge",
    "llava_run_learning_rate": "gauge",
    "llava_run_loss": "gauge",
    "llava_run_phase": "gauge",
    "llava_run_progress_timestamp_seconds": "gauge",
    "llava_run_samples_per_second": "gauge",
    "llava_run_score": "gauge",
    "llava_run_stage_duration_seconds": "gauge",
    "llava_run_stage_state": "gauge",
    "llava_run_step": "gauge",
    "llava_run_steps_total": "gauge",
    "llava_run_tokens_per_second": "gauge",
}
WHO = 'name="invoices",namespace="team"'


def expose(*runs: RunView) -> str:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(RunCollector(runs, lambda: NOW))
    OperatorMetrics(registry, queue_depth=lambda: 3)
    return generate_latest(registry).decode()


def test_names_and_types_are_frozen_and_explained() -> None:
    lines = expose().splitlines()
    types = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE llava_"))
    helps = {line.split()[2]: line.split(maxsplit=3)[3] for line in lines if line.startswith("# HELP llava_")}
    # The client adds the creation times of counters and histograms by itself.
    types = {name: kind for name, kind in types.items() if not name.endswith("_created")}
    assert types == FROZEN
    assert all(helps[name].endswith(".") for name in types)


def test_completed_run() -> None:
    status = begun(StageName.EVALUATE)
    done = commit(see(status, job=make_job(status, complete=True), pods=(succeeded(StageName.EVALUATE),)))
    text = expose(RunView(key=KEY, uid=RUN_UID, status=done))
    assert f'llava_run_phase{{{WHO},phase="Succeeded"}} 1.0' in text
    assert f'llava_run_score{{metric="exact_match",model="base",{WHO},split="validation"}} 0.02' in text
    assert f'llava_run_stage_state{{{WHO},stage="merge",state="Succeeded"}} 1.0' in text
    assert "llava_run_failure{" not in text
    assert "llava_operator_queue_depth 3.0" in text


def test_failed_run() -> None:
    status = begun(StageName.TRAIN)
    done = commit(see(status, job=make_job(status, failed=job_end()), pods=(failed(exit_code=67),)))
    text = expose(RunView(key=KEY, uid=RUN_UID, status=done))
    assert f'llava_run_failure{{{WHO},reason="LossNotFinite",stage="train"}} 1.0' in text
    assert f'llava_run_attempts_ended{{{WHO},reason="LossNotFinite"}} 1.0' in text


def test_run_without_status_is_pending() -> None:
    status = see().run.status
    assert f'llava_run_phase{{{WHO},phase="Pending"}} 1.0' in expose(RunView(key=KEY, uid=RUN_UID, status=status))


def test_bytes_that_are_fetched_are_no_steps() -> None:
    for unit in ("steps", "bytes"):
        progress = Progress.model_validate({"stage": "prepare", "attempt": 1, "pod_uid": "u", "step": 5,
                                            "total_steps": 9, "unit": unit, "last_update_time": NOW_TEXT})  # fmt: skip
        text = expose(RunView(key=KEY, uid=RUN_UID, status=begun().model_copy(update={"progress": progress})))
        assert ("llava_run_step{" in text) is (unit == "steps")
        assert "llava_run_progress_timestamp_seconds{" in text
