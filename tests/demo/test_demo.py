"""The demo's own decisions: what it refuses, what it applies, what it shows. The chain itself is tested in e2e."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from llava_api.constants import StageName
from llava_api.report import LOSSES_KEPT
from llava_api.spec import Spec
from llava_api.status import Progress, StageState, StageStatus, Status, Summary
from tests.demo.__main__ import main
from tests.demo.courier import pack
from tests.demo.inputs import COMPLETE, digest, is_whole
from tests.demo.live import build_table, describe
from tests.demo.outcome import tell
from tests.demo.plan import SAMPLE, DemoPlan, OwnData, build_manifest
from tests.demo.target import helm_cluster_arguments
from tests.demo.watch import list_ways_to_watch, start_prometheus
from tests.kubectl import DeadlineExceeded, Kubectl, KubectlError, wait_for


def make_plan(data: OwnData | None = None, **changes: Any) -> DemoPlan:
    settings: dict[str, Any] = {
        "cluster": "demo", "context": None, "namespace": "n", "run": "tiny", "output": Path("out"), "data": data,
        "images": {}, "storage_class": None,
    }  # fmt: skip
    return DemoPlan(**(settings | changes))


def printed(renderable: Any) -> str:
    text = io.StringIO()
    Console(file=text, width=140).print(renderable)
    return text.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "train.json").write_text("[]")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--format=llava"], "FORMAT=llava needs DATA=FOLDER"),
        (["--file=x.json"], "FILE=x.json needs DATA=FOLDER"),
        (["--data={}"], "FORMAT=ubiai, llava or messages"),
        (["--data={}", "--format=csv", "--file=train.json"], "not FORMAT='csv'"),
        (["--data={}", "--format=llava"], "needs FILE=NAME"),
        (["--data={}/none", "--format=llava", "--file=train.json"], "is no folder"),
        (["--data={}", "--format=llava", "--file=other.json"], "FILE=other.json is not in"),
        (["--data={}", "--format=llava", "--file=train.json", "--images=scans"], "IMAGES=scans is no folder"),
        (["--context=mine"], "OPERATOR_IMAGE=REFERENCE"),
        (["--context=mine", "--operator-image=a:1"], "TRAINER_IMAGE=REFERENCE"),
    ],
)
def test_wrong_input_is_named(
    arguments: list[str], told: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", *(argument.format(dataset) for argument in arguments)]) == 1
    assert told in " ".join(capsys.readouterr().out.split())


def test_unreachable_context_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kubectl", "helm"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho no such context >&2; exit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(["up", "--context=mine", "--operator-image=a:1", "--trainer-image=b:1"]) == 1
    assert "cluster of context mine does not answer" in " ".join(capsys.readouterr().out.split())


def test_missing_program_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["down", "--context=mine"]) == 1
    assert "needs kubectl on the PATH" in capsys.readouterr().out


def test_the_demo_applies_the_sample_itself() -> None:
    assert build_manifest(make_plan()) == yaml.safe_load(SAMPLE.read_text())


def test_own_data_changes_only_what_it_must(dataset: Path) -> None:
    data = OwnData(folder=dataset, format="llava", file="train.json", images="images")
    manifest = build_manifest(make_plan(data, storage_class="fast"))
    spec = Spec.model_validate(manifest["spec"])
    assert (spec.dataset.format, spec.dataset.file, spec.dataset.images) == ("llava", "train.json", "images")
    assert spec.evaluation.training_samples > 0
    assert spec.storage.storage_class_name == "fast"
    sample = yaml.safe_load(SAMPLE.read_text())
    assert manifest["spec"]["workers"] == sample["spec"]["workers"]


def make_status(**changes: Any) -> Status:
    stages = (
        StageStatus(name=StageName.PREPARE, state=StageState.SUCCEEDED, message="256 samples"),
        StageStatus(name=StageName.TRAIN, state=StageState.RUNNING),
        StageStatus(name=StageName.MERGE),
        StageStatus(name=StageName.EVALUATE),
    )
    progress = Progress(
        stage=StageName.TRAIN, attempt=1, pod_uid="u", step=32, total_steps=128, loss=1.25,
        losses=(1.0,) * LOSSES_KEPT, last_update_time="2026-01-01T00:00:00Z",
    )  # fmt: skip
    summary = Summary(stage="train", step="32/128", percent="25", eta="12s")
    return Status(**({"stages": stages, "progress": progress, "summary": summary} | changes))


def test_table_shows_a_bar_for_each_stage() -> None:
    rows = [row for row in printed(build_table(make_status())).splitlines() if row.strip()]
    assert [row.split()[0] for row in rows[1:]] == ["prepare", "train", "merge", "evaluate"]
    filled = [row.count("━") for row in rows[1:]]
    assert "32/128" in rows[2]
    assert "12s" in rows[2]
    assert "loss 1.250" in rows[2]
    assert filled == [32, 8, 0, 0], "a quarter of the bar for a quarter of the steps"


def test_table_before_the_operator_has_seen_the_run() -> None:
    assert "Pending" in printed(build_table(Status()))
    assert describe(Status()) == "waiting for the operator to see the run"


def test_plain_line_tells_every_stage() -> None:
    assert describe(make_status()) == "prepare succeeded · train running 25% · merge pending · evaluate pending"


def test_failure_is_told_with_hint_and_log() -> None:
    failure = {"reason": "InvalidData", "message": "export.json[3] is bad", "hint": "Mend it.", "stage": "prepare",
               "logTail": "[the] last line"}  # fmt: skip
    written = io.StringIO()
    console = Console(file=written, width=140)
    run = {"status": {"phase": "Failed", "failure": failure}}
    assert tell(make_plan(), run, console, "kubectl") == 1
    text = written.getvalue()
    for part in ("failed in prepare: InvalidData", "export.json[3] is bad", "Mend it.", "[the] last line"):
        assert part in text


def test_success_is_told_with_scores_and_what_next() -> None:
    metric = {"name": "exact_match", "split": "validation", "base": 0.0, "tuned": 0.9, "gain": 0.9, "samples": 64}
    metric |= {"gainLow": 0.8, "gainHigh": 0.97}
    gate = {
        "type": "GatePassed", "status": "True", "reason": "Passed", "message": "gate Passed: by 64 questions",
        "lastTransitionTime": "2026-11-01T12:00:00Z",
    }  # fmt: skip
    written = io.StringIO()
    console = Console(file=written, width=140)
    run = {"status": {"phase": "Succeeded", "evaluation": {"metrics": [metric]}, "conditions": [gate]}}
    assert tell(make_plan(), run, console, "kubectl -n n", "eval the cluster") == 0
    text = written.getvalue()
    for part in (
        "0.000",
        "0.900",
        "+0.900",
        "+0.800 to +0.970",
        "GatePassed: True (gate Passed: by 64 questions)",
        "report.html",
        "eval the cluster",
        "kubectl -n n get lft",
        "make demo-down",
    ):
        assert part in text


def test_where_prometheus_is_and_how_to_load_the_dashboards_is_told() -> None:
    written = io.StringIO()
    metric = {"name": "exact_match", "split": "validation", "base": 0.0, "tuned": 0.9, "gain": 0.9, "samples": 64}
    run = {"status": {"phase": "Succeeded", "evaluation": {"metrics": [metric]}}}
    ways = list_ways_to_watch("http://127.77.0.1:9090")
    tell(make_plan(), run, Console(file=written, width=140), "kubectl", ways_to_watch=ways)
    for part in ("http://127.77.0.1:9090/graph", "make dashboards", "docs/monitoring.md"):
        assert part in written.getvalue()


def test_on_a_persons_own_cluster_no_prometheus_is_started() -> None:
    address = start_prometheus(make_plan(context="mine"))
    assert address is None
    [way] = list_ways_to_watch(address)
    for part in ("metrics.serviceMonitor.enabled=true", "dashboards.enabled=true", "docs/monitoring.md"):
        assert part in way


def test_cached_base_is_not_trusted_blindly(tmp_path: Path) -> None:
    assert not is_whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / COMPLETE).write_text(digest(tmp_path))
    assert is_whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert not is_whole(tmp_path)


def test_what_is_read_only_here_can_be_replaced_where_it_is_sent(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(b"scan")
    (folder / "1.jpg").chmod(0o444)
    folder.chmod(0o555)
    packed = io.BytesIO()
    pack({"data": folder}, packed)
    folder.chmod(0o755)
    with tarfile.open(fileobj=io.BytesIO(packed.getvalue())) as tar:
        assert {entry.name: entry.mode for entry in tar} == {"data": 0o755, "data/1.jpg": 0o644}


def test_waiting_ends_at_its_deadline_and_says_what_for() -> None:
    with pytest.raises(DeadlineExceeded, match="in vain for the moon"):
        wait_for("the moon", lambda: None, timeout_s=0, poll_s=0)


def test_waiting_names_the_last_error() -> None:
    def fail() -> bool:
        raise KubectlError("no route")

    with pytest.raises(DeadlineExceeded, match="the last error: no route"):
        wait_for("the moon", fail, timeout_s=0, poll_s=0)


def test_helm_gets_its_own_name_for_the_context() -> None:
    kubectl = Kubectl(binary=Path("kubectl"), context="mine")
    assert helm_cluster_arguments(kubectl) == ["--kube-context", "mine"]
