"""The metrics of the operator itself are those of the contract, each is filled in, and nobody makes series of them."""

from datetime import timedelta
from importlib import metadata

import pytest
from prometheus_client import CollectorRegistry

from llava_api.constants import NotificationEvent, StageName
from llava_api.status import Accounting, NotificationState, NotificationStatus, Status
from llava_operator.kube.kinds import JOBS, KINDS, PODS, RUNS
from llava_operator.kube.requests import OTHER, Answered, read_request
from llava_operator.serving.connections import Closed
from llava_operator.telemetry.contract import OPERATOR_FAMILIES, Kind
from llava_operator.telemetry.operator_metrics import OperatorMetrics
from llava_operator.telemetry.text_format import list_slices
from tests.controller.makers import KEY, NOW, NOW_TEXT, ONCE, begun, commit, failed, job_end, make_job, see


def make() -> tuple[OperatorMetrics, CollectorRegistry]:
    registry = CollectorRegistry(auto_describe=True)
    return OperatorMetrics(registry, queue_depth=lambda: 3, cached={"jobs": lambda: 5}), registry


def answered(method: str = "GET", path: str = "/api/v1/pods", code: int = 200, *, watch: bool = False) -> Answered:
    return Answered(method=method, path=path, code=code, seconds=0.02, is_watch=watch)


def note_everything(metrics: OperatorMetrics) -> None:
    running = begun(StageName.TRAIN).model_copy(update={"accounting": Accounting()})
    over = commit(see(running, spec=ONCE, job=make_job(running, failed=job_end()), pods=(failed(exit_code=67),)))
    spent = Accounting(productive_gpu_seconds=60, lost_gpu_seconds=6)
    metrics.note_written(KEY, running, over.model_copy(update={"accounting": spent}))
    told = NotificationStatus(name="team", id="1", event=NotificationEvent.FAILED, time=NOW_TEXT)
    sent = told.model_copy(update={"state": NotificationState.DELIVERED})
    metrics.note_written(KEY, Status(notifications=(told,)), Status(notifications=(sent,)))
    metrics.note_leading()
    metrics.note_wait(0.1)
    metrics.note_retry()
    with metrics.time_pass():
        pass
    metrics.note_pass_error(ValueError)
    metrics.note_relist("ok")
    metrics.note_skipped("Pod", "unowned")
    metrics.note_request(answered())
    metrics.note_request(answered(watch=True))
    metrics.note_broken_watch(answered(watch=True))
    metrics.note_report(409, "not_current")
    metrics.note_closed("metrics", "rate")
    metrics.note_validity("authority", NOW, NOW + timedelta(days=90))


def test_families_are_those_of_the_contract_and_each_is_filled_in() -> None:
    metrics, registry = make()
    note_everything(metrics)
    text = "".join(list_slices(registry))
    lines = text.splitlines()
    for family in OPERATOR_FAMILIES:
        kind = "gauge" if family.kind is Kind.INFO else family.kind
        assert f"# TYPE {family.name} {kind}" in lines
        assert f"# HELP {family.name} {family.help}" in lines
        series = f"{family.name}_bucket" if family.kind is Kind.HISTOGRAM else family.name
        samples = [line for line in lines if line.startswith((f"{series}{{", f"{series} "))]
        assert samples, family.name
        for label in family.labels:
            assert all(f'{label}="' in line for line in samples), (family.name, label)
    made = {line.split()[2] for line in lines if line.startswith("# TYPE llava_")}
    assert made == {family.name for family in OPERATOR_FAMILIES}


def test_values() -> None:
    metrics, registry = make()
    note_everything(metrics)
    version = metadata.version("llava-finetune-operator")
    whose = {"namespace": KEY.namespace}
    for name, labels, value in [
        ("info", {"version": version}, 1),
        ("leader", {}, 1),
        ("queue_depth", {}, 3),
        ("cached_objects", {"resource": "jobs"}, 5),
        ("api_requests_total", {"verb": "list", "resource": "pods", "code": "200"}, 1),
        ("api_requests_total", {"verb": "watch", "resource": "pods", "code": "200"}, 1),
        ("api_request_duration_seconds_count", {"verb": "list", "resource": "pods"}, 1),
        ("api_request_duration_seconds_count", {"verb": "watch", "resource": "pods"}, None),
        ("watch_failures_total", {"resource": "pods"}, 1),
        ("runs_ended_total", {**whose, "phase": "Failed", "reason": "LossNotFinite"}, 1),
        ("runs_ended_total", {**whose, "phase": "Succeeded", "reason": ""}, 0),
        ("stage_duration_seconds_count", {"stage": "train", "state": "Failed"}, 1),
        ("attempts_ended_total", {**whose, "stage": "train", "reason": "LossNotFinite"}, 1),
        ("gpu_seconds_total", {**whose, "use": "productive"}, 60),
        ("gpu_seconds_total", {**whose, "use": "lost"}, 6),
        ("certificate_not_before_timestamp_seconds", {"certificate": "authority"}, NOW.timestamp()),
        ("certificate_not_after_timestamp_seconds", {"certificate": "authority"}, NOW.timestamp() + 7_776_000),
        ("reports_total", {"code": "409"}, 1),
        ("reports_refused_total", {"reason": "not_current"}, 1),
    ]:
        assert registry.get_sample_value(f"llava_operator_{name}", labels) == value, (name, labels)


def test_a_report_that_is_taken_is_no_refusal() -> None:
    metrics, registry = make()
    metrics.note_report(200, None)
    assert registry.get_sample_value("llava_operator_reports_total", {"code": "200"}) == 1
    assert "llava_operator_reports_refused_total{" not in "".join(list_slices(registry))


def test_what_is_expected_begins_at_nothing() -> None:
    metrics, registry = make()
    metrics.expect("relists_total", "failed")
    assert registry.get_sample_value("llava_operator_relists_total", {"outcome": "failed"}) == 0
    metrics.note_relist("failed")
    assert registry.get_sample_value("llava_operator_relists_total", {"outcome": "failed"}) == 1


def test_the_first_write_in_a_namespace_begins_what_its_end_will_raise() -> None:
    """A counter that begins at 1 has not increased, for Prometheus."""
    metrics, registry = make()
    metrics.note_written(KEY, Status(), begun())
    succeeded = {"namespace": KEY.namespace, "phase": "Succeeded", "reason": ""}
    assert registry.get_sample_value("llava_operator_runs_ended_total", succeeded) == 0
    for use in ("productive", "lost"):
        labels = {"namespace": KEY.namespace, "use": use}
        assert registry.get_sample_value("llava_operator_gpu_seconds_total", labels) == 0


# --- requests in the words of RBAC


@pytest.mark.parametrize(
    ("method", "path", "verb", "resource"),
    [
        ("GET", RUNS.path(), "list", "llavafinetunes"),
        ("GET", RUNS.path("ns"), "list", "llavafinetunes"),
        ("get", RUNS.path("ns", "r"), "get", "llavafinetunes"),
        ("PATCH", RUNS.path("ns", "r", "status"), "patch", "llavafinetunes/status"),
        ("POST", JOBS.path("ns"), "create", "jobs"),
        ("DELETE", JOBS.path("ns", "j"), "delete", "jobs"),
        ("PUT", "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l", "update", "leases"),
        ("POST", "/apis/authentication.k8s.io/v1/tokenreviews", "create", "tokenreviews"),
        # A name that looks like a path, and one that is a resource's.
        ("GET", PODS.path("ns", "../jobs"), "get", "pods"),
        ("GET", PODS.path("jobs", "namespaces"), "get", "pods"),
        ("GET", PODS.path("ns", "p", "log"), "get", OTHER),
        ("GET", "/api/v1/namespaces", "list", OTHER),
        ("GET", "/api/v1/namespaces/ns", "get", OTHER),
        ("GET", "/version", "get", OTHER),
        ("GET", "/apis", "get", OTHER),
        ("GET", "/", "get", OTHER),
        ("GET", "", "get", OTHER),
        ("BREW", "/apis/example.com/v1/namespaces/ns/pots/p", "get", OTHER),
    ],
)
def test_request_in_the_words_of_rbac(method: str, path: str, verb: str, resource: str) -> None:
    assert read_request(answered(method, path)) == (verb, resource)


def test_watch_is_a_verb_of_its_own() -> None:
    for kind in KINDS:
        assert read_request(answered("GET", kind.path("ns"), watch=True)) == ("watch", kind.plural)


def test_ended_connections_are_counted_from_nothing() -> None:
    """A rate does not see the first of a counter that begins at 1."""
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry, queue_depth=lambda: 0, cached={})
    count = metrics.count_closed("report", Closed)
    told = {
        reason: registry.get_sample_value(
            "llava_operator_connections_closed_total", {"endpoint": "report", "reason": reason}
        )
        for reason in Closed
    }
    assert set(told.values()) == {0}
    count(Closed.SLOW)
    slow = {"endpoint": "report", "reason": Closed.SLOW}
    assert registry.get_sample_value("llava_operator_connections_closed_total", slow) == 1
