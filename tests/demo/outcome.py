"""What the demo says at its end: scores, where the report lies, what to type next; or why it failed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from llava_api.constants import Condition, Phase
from llava_api.names import volume_claim_name
from llava_api.status import Status
from tests.demo.courier import Courier
from tests.demo.plan import DemoPlan
from tests.kubectl import KubectlError

_SAMPLE_FILES = ("train.jsonl", "validation.jsonl")


def fetch_results(plan: DemoPlan, courier: Courier, run: dict[str, Any]) -> None:
    """Copy the reports and numbers from the run's volume into the output folder, and the resource beside them."""
    shutil.rmtree(plan.output, ignore_errors=True)
    plan.output.mkdir(parents=True)
    run["metadata"].pop("managedFields", None)
    (plan.output / "run.yaml").write_text(yaml.safe_dump(run, sort_keys=False, allow_unicode=True))
    # A run that failed has left only some of it.
    for folder in ("data", "evaluation"):
        try:
            courier.fetch(volume_claim_name(plan.run), folder, plan.output / folder)
        except KubectlError:
            if run["status"].get("phase") == Phase.SUCCEEDED:
                raise
    for name in _SAMPLE_FILES:
        (plan.output / "data" / name).unlink(missing_ok=True)


def tell(
    plan: DemoPlan,
    run: dict[str, Any],
    console: Console,
    kubectl_line: str,
    shell_line: str | None = None,
    *,
    ways_to_watch: Sequence[str] = (),
) -> int:
    """Print the end of the story; returns the exit code.

    Args:
        plan: what was asked for.
        run: the whole resource.
        console: where to print.
        kubectl_line: how a person calls kubectl for the cluster.
        shell_line: what they type once before that.
        ways_to_watch: what they type, or open, to look at metrics.
    """
    status = Status.model_validate(run["status"])
    console.print()
    if status.phase is not Phase.SUCCEEDED or status.evaluation is None:
        _tell_failure(status, console)
        console.print(f"\nWhole resource: {plan.output / 'run.yaml'}", soft_wrap=True)
        return 1
    console.print(_scores(status))
    gate = next((held for held in status.conditions if held.type is Condition.GATE_PASSED), None)
    if gate is not None:
        console.print(f"{gate.type}: {gate.status} ({gate.message})", highlight=False)
    if status.data:
        data = status.data
        console.print(
            f"{data.images} pictures, {data.samples_train + data.samples_validation} samples with "
            f"{data.pairs_train + data.pairs_validation} question-answer pairs: {data.pairs_train} pairs to train on, "
            f"{data.pairs_validation} held out, {data.overlong_samples} samples cut off at maxLength"
        )
    console.print(f"\nReport:          {plan.output / 'evaluation' / 'report.html'}", soft_wrap=True)
    console.print(f"Dataset report:  {plan.output / 'data' / 'report.html'}", soft_wrap=True)
    console.print(f"Whole resource:  {plan.output / 'run.yaml'}", soft_wrap=True)
    console.print("\nWhat to type next:", style="bold")
    for line in (
        *([shell_line] if shell_line else []),
        f"{kubectl_line} get lft",
        f"{kubectl_line} describe lft {plan.run}",
        f"{kubectl_line} explain lft.spec.training",
        *ways_to_watch,
        "make demo DATA=my-folder FORMAT=llava FILE=train.json    # the same with your own pictures",
        f"make demo-down CONTEXT={plan.context}    # removes the operator, the runs and the reports above"
        if plan.context
        else "make demo-down    # removes the cluster and the reports above",
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    return 0


def _scores(status: Status) -> Table:
    table = Table(title="Exact match, base against tuned", title_style="bold", title_justify="left")
    for column in ("questions", "base", "tuned", "gain", "95 % interval", "asked"):
        table.add_column(column, justify="right")
    assert status.evaluation is not None
    names = {"validation": "held out", "train": "seen in training"}
    for metric in status.evaluation.metrics:
        table.add_row(
            names.get(metric.split, metric.split),
            f"{metric.base:.3f}",
            f"{metric.tuned:.3f}",
            f"{metric.gain:+.3f}",
            "" if metric.gain_low is None else f"{metric.gain_low:+.3f} to {metric.gain_high:+.3f}",
            str(metric.samples),
            style="green" if metric.gain > 0 else "",
        )
    return table


def _tell_failure(status: Status, console: Console) -> None:
    failure = status.failure
    if failure is None:
        console.print(f"The run ended as {status.phase} without saying why.", style="red")
        return
    console.print(f"The run failed in {failure.stage}: {failure.reason}", style="bold red")
    console.print(failure.message, highlight=False)
    console.print(f"\nWhat to do: {failure.hint}", style="bold", highlight=False)
    if failure.log_tail:
        console.print("\nLast lines of the log:", style="bold")
        console.print(failure.log_tail, highlight=False, markup=False)


def write_summary(path: Path, seconds: dict[str, float], run: dict[str, Any]) -> None:
    """Times of the demo's steps and the scores, for scripts."""
    evaluation = run["status"].get("evaluation", {})
    path.write_text(json.dumps({"seconds": seconds, "metrics": evaluation.get("metrics", [])}, indent=1) + "\n")
