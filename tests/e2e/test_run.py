"""The whole chain on a real cluster: from `kubectl apply` to a merged and judged model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llava_api.constants import GateOutcome, Phase, StageName
from llava_api.names import volume_claim_name
from llava_api.status import StageState, Status
from tests.demo.target import OPERATOR_NAMESPACE, RELEASE
from tests.e2e.runs import SHUFFLED_PATH, Runs, stage_states

pytestmark = pytest.mark.e2e

NAME = "whole"
STAGES = (StageName.PREPARE, StageName.TRAIN, StageName.MERGE, StageName.EVALUATE)


@pytest.fixture(scope="module")
def finished(runs: Runs) -> Iterator[Status]:
    """A run of the sample, ended."""
    runs.start(NAME)
    runs.kubectl.run("wait", "--for=condition=Complete", f"lft/{NAME}", "--timeout=400s", timeout_s=410)
    yield runs.status(NAME)
    runs.delete(NAME)


def test_every_stage_succeeded_and_says_so(finished: Status) -> None:
    assert finished.phase is Phase.SUCCEEDED
    assert stage_states(finished) == dict.fromkeys(STAGES, StageState.SUCCEEDED)
    true = {condition.type for condition in finished.conditions if condition.status == "True"}
    assert true == {"Ready", "Prepared", "Trained", "Merged", "Evaluated", "Complete", "Reporting", "GatePassed"}
    times = [(stage.start_time, stage.completion_time) for stage in finished.stages]
    assert all(start and end and start <= end for start, end in times)
    assert times == sorted(times)
    assert finished.failure is None


def test_the_tuned_model_has_learned(finished: Status) -> None:
    assert finished.evaluation is not None
    [metric] = finished.evaluation.metrics
    assert metric.name == "exact_match"
    assert metric.split == "validation"
    assert metric.samples == 64
    assert metric.base <= 0.05
    assert metric.tuned >= 0.8
    assert metric.gain_low is not None
    assert 0.6 < metric.gain_low < metric.gain
    assert finished.evaluation.gate is not None
    assert (finished.evaluation.gate.outcome, finished.evaluation.gate.groups) == (GateOutcome.PASSED, metric.groups)
    assert finished.summary is not None
    assert finished.summary.score == f"{metric.base:.2f}→{metric.tuned:.2f}"


def test_data_is_counted(finished: Status) -> None:
    assert finished.data is not None
    assert (finished.data.samples_train, finished.data.samples_validation, finished.data.images) == (256, 64, 320)
    assert (finished.data.pairs_train, finished.data.pairs_validation) == (256, 64)
    assert finished.data.overlong_samples == 0


def test_kubectl_get_tells_the_story(finished: Status, runs: Runs) -> None:
    header, row = runs.kubectl.run("get", "lft", NAME).splitlines()
    assert header.split() == ["NAME", "PHASE", "REASON", "STAGE", "STEP", "PERCENT", "ETA", "SCORE", "AGE"]
    assert row.split()[:4] == [NAME, "Succeeded", "Succeeded", "evaluate"]
    assert "→" in row


def test_two_pods_trained(finished: Status, runs: Runs) -> None:
    pods = runs.pods(NAME, StageName.TRAIN)
    assert len(pods) == 2
    assert {pod["status"]["phase"] for pod in pods} == {"Succeeded"}


def test_pods_are_restricted_and_bounded(finished: Status, runs: Runs) -> None:
    pods = runs.pods(NAME)
    assert len(pods) == 5
    for pod in pods:
        for container in pod["spec"]["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
        shm = [volume for volume in pod["spec"]["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory"]
        assert shm[0]["emptyDir"]["sizeLimit"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_no_finalizer_anywhere(finished: Status, runs: Runs) -> None:
    assert "finalizers" not in runs.kubectl.get("lft", NAME)["metadata"]


def test_events_mark_the_transitions(finished: Status, runs: Runs) -> None:
    events = runs.kubectl.list("events", "--field-selector", f"involvedObject.name={NAME}")
    told = " ".join(f"{event['reason']} {event['message']}" for event in events)
    for stage in STAGES:
        assert stage in told
    assert len({event["metadata"]["name"] for event in events}) == len(events)


def test_metrics_are_made_from_the_status(finished: Status, runs: Runs) -> None:
    service = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/services/{RELEASE}-metrics:metrics/proxy/metrics"
    families = text_string_to_metric_families(runs.kubectl.run("get", "--raw", service))
    samples = [sample for family in families for sample in family.samples if sample.labels.get("name") == NAME]
    phases = {sample.labels["phase"]: sample.value for sample in samples if sample.name == "llava_run_phase"}
    assert phases == {"Succeeded": 1}
    scores = {sample.labels["model"]: sample.value for sample in samples if sample.name == "llava_run_score"}
    assert finished.evaluation is not None
    [metric] = finished.evaluation.metrics
    assert scores == {"base": metric.base, "tuned": metric.tuned}
    stages = {sample.labels["stage"] for sample in samples if sample.name == "llava_run_stage_duration_seconds"}
    assert stages == set(STAGES)


def test_reports_are_there_and_self_contained(volume: Path) -> None:
    for path in ("evaluation/report.html", "data/report.html"):
        report = (volume / path).read_text()
        assert "data:image/" in report
        assert "http://" not in report.replace("http://www.w3.org", "")
        assert "https://" not in report
    report = (volume / "evaluation" / "report.html").read_text()
    assert "What is the tray code?" in report
    metrics = json.loads((volume / "evaluation" / "metrics.json").read_text())
    assert metrics


def test_artifacts_lie_where_the_status_says(finished: Status, volume: Path) -> None:
    artifacts = finished.artifacts
    assert artifacts is not None
    assert artifacts.volume_claim == volume_claim_name(NAME)
    assert (volume / "merged" / "config.json").is_file()
    assert (volume / "adapter" / "adapter_model.safetensors").is_file()
    for path in (artifacts.report, artifacts.dataset_report, artifacts.adapter, artifacts.merged):
        assert path is not None
        assert (volume / path).exists()
    assert all(len(digest.removeprefix("sha256:")) == 64 for digest in artifacts.digests.values())
    assert artifacts.digests


def test_logs_of_every_rank_are_kept(volume: Path) -> None:
    logs = volume / "attempts" / "train-1" / "logs"
    assert {path.name for path in logs.iterdir()} >= {"rank-0.log", "rank-1.log"}
    for stage in (StageName.PREPARE, StageName.MERGE, StageName.EVALUATE):
        assert list((volume / "attempts" / f"{stage}-1" / "logs").iterdir())


def test_merged_model_loads_without_our_code(volume: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(volume / "merged")
    processor = AutoProcessor.from_pretrained(volume / "merged")
    assert model.config.model_type == "llava"
    assert processor.num_additional_image_tokens == 1


def test_with_shuffled_answers_the_gain_is_gone(runs: Runs) -> None:
    """The control experiment: the same pictures, where the picture says nothing about the answer.

    In LLaVA's own format, and with samples seen in training scored as well: what a person's own data goes through.
    """
    runs.start("shuffled", data=SHUFFLED_PATH, dataset={"format": "llava"}, evaluation={"trainingSamples": 32})
    status = runs.wait_for_end("shuffled")
    assert status.phase is Phase.SUCCEEDED, status.failure
    assert status.data is not None
    assert (status.data.pairs_train, status.data.pairs_validation, status.data.images) == (256, 64, 320)
    assert status.evaluation is not None
    metrics = {metric.split: metric for metric in status.evaluation.metrics}
    assert {split: metric.samples for split, metric in metrics.items()} == {"validation": 64, "train": 32}
    assert metrics["validation"].tuned <= 0.15
    runs.delete("shuffled")
