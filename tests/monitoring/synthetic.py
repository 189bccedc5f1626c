"""Half an hour of everything that the contract and the listed exporters promise, made up, in a real Prometheus.

Two operator pods tell of the same runs for a while, as when one takes over from another: queries that join would then
find each run twice.
"""

import math
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from llava_api.constants import STAGE_CONTAINER
from llava_monitoring.foreign import FOREIGN, Foreign
from llava_operator.telemetry.contract import OPERATOR_FAMILIES, RUN_FAMILIES, Family, Kind
from tests.kubectl import wait_for
from tests.monitoring.prometheus import Prometheus, Span
from tests.ports import free_port

NAMESPACE, OPERATOR_NAMESPACE = "team-a", "llava-system"
SECONDS, STEP_S = 1800, 30
START = 1_800_000_000
SPAN = Span(start=START, end=START + SECONDS, step_s=60)
_PODS = {"operator-old": (0, 1000), "operator-new": (900, SECONDS)}
"""From when to when each of them tells."""
_RUNS = {"invoices": "Running", "receipts": "Succeeded", "scans": "Failed", "forms": "Suspended"}
_VALUES = {
    "phase": ("Running",),
    "stage": ("train", "merge", "publish"),
    "state": ("Running", "Succeeded", "Skipped"),
    "reason": ("Unschedulable", "WorkerKilled"),
    "team": ("vision",),
    "method": ("lora",),
    "model": ("base", "tuned"),
    "metric": ("exact_match",),
    "split": ("validation",),
    "gate": ("gate", "retention"),
    "scheme": ("s3", "hf"),
    "what": ("merged", "adapter"),
    "bound": ("value", "low", "high"),
    "version": ("0.1.0",),
    "namespace": (NAMESPACE,),
    "code": ("200", "409"),
    "use": ("productive", "lost"),
    "resource": ("memory", "cpu", "jobs"),
    "container": (STAGE_CONTAINER, "operator"),
    "pod": ("invoices-train-1-0-x7k2p", "operator-new"),
}


def write_openmetrics(file: Path) -> None:
    """Write the whole half hour, family by family, as promtool reads it."""
    lines: list[str] = []
    for family in (*RUN_FAMILIES, *OPERATOR_FAMILIES):
        kind = "unknown" if family.kind is Kind.INFO else family.kind
        lines.append(f"# TYPE {family.name.removesuffix('_total')} {kind}")
        for pod, (begins, ends) in _PODS.items():
            lines += _tell(family, pod, range(begins, ends, STEP_S))
    for foreign in FOREIGN:
        kind = "counter" if foreign.kind is Kind.COUNTER else "gauge"
        lines.append(f"# TYPE {foreign.name.removesuffix('_total')} {kind}")
        lines += _tell_foreign(foreign)
    file.write_text("\n".join([*lines, "# EOF", ""]))


def _tell(family: Family, pod: str, times: range) -> Iterator[str]:
    target = {"pod": pod, "service": "metrics", "job": "metrics", "namespace": OPERATOR_NAMESPACE}
    for labels in _combine(family.labels):
        if labels.get("phase") and labels.get("name") and labels["phase"] != _RUNS[labels["name"]]:
            continue
        for number, name in enumerate([f"{family.name}_bucket", f"{family.name}_count", f"{family.name}_sum"]
                                      if family.kind is Kind.HISTOGRAM else [family.name]):  # fmt: skip
            bounds = [*map(str, family.buckets), "+Inf"] if number == 0 and family.kind is Kind.HISTOGRAM else [""]
            for bound in bounds:
                full = target | labels | ({"le": bound} if bound else {})
                for at in times:
                    yield _line(name, full, _value(family, at) if number < 2 else at / 2, at)


def _value(family: Family, at: int) -> float:
    if family.kind is Kind.INFO or family.name.endswith(("_phase", "_state", "_leader", "_failure", "_outcome")):
        return 1
    if family.name.endswith("_attempt"):
        return 1 + (at > SECONDS / 3)
    if family.unit == "timestamp_seconds":
        return START + at - at % 300 - 60
    if family.kind in (Kind.COUNTER, Kind.HISTOGRAM):
        return at
    if family.unit == "ratio":
        return at / SECONDS
    if family.unit == "bytes":
        return 2**35
    return 2 + math.exp(-at / 600)


def _tell_foreign(foreign: Foreign) -> Iterator[str]:
    own = {"namespace": OPERATOR_NAMESPACE, "pod": "operator-new"} if not foreign.labels else {}
    for labels in _combine(foreign.labels):
        if labels.get("pod") == "operator-new":
            labels["namespace"] = OPERATOR_NAMESPACE
        for at in range(0, SECONDS, STEP_S):
            gauge = 1 if foreign.name in ("up", "kube_pod_status_phase") else 40
            yield _line(foreign.name, own | labels, at if foreign.kind is Kind.COUNTER else gauge, at)


def _combine(names: tuple[str, ...]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{}]
    for name in names:
        values = tuple(_RUNS) if name == "name" and "uid" not in names and "image" not in names else None
        values = tuple(dict.fromkeys(_RUNS.values())) if name == "phase" else values or _VALUES.get(name, ("x",))
        found = [{**labels, name: value} for labels in found for value in values]
    return found


def _line(name: str, labels: dict[str, str], value: float, at: int) -> str:
    inner = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return (
        f"{name}{{{inner}}} {value:g} {START + at}" if abs(value) < 1e6 else f"{name}{{{inner}}} {value!r} {START + at}"
    )


@contextmanager
def serve(prometheus: Path, promtool: Path, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that remembers the half hour and scrapes nothing."""
    write_openmetrics(folder / "everything.txt")
    data = folder / "data"
    subprocess.run(
        [promtool, "tsdb", "create-blocks-from", "openmetrics", folder / "everything.txt", data],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "prometheus.yml").write_text("{}")
    address = f"127.0.0.1:{free_port()}"
    server = subprocess.Popen(
        [prometheus, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={data}",
         "--storage.tsdb.retention.time=100y", f"--web.listen-address={address}", "--log.level=error"],
    )  # fmt: skip
    try:
        wait_for("Prometheus to be ready", lambda: _is_ready(address), timeout_s=60)
        yield Prometheus(f"http://{address}")
    finally:
        server.terminate()
        server.wait(timeout=30)


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False
