"""docs/failures.md, made from the table of failures."""

from collections.abc import Iterable

from llava_api.failures import DISRUPTIONS, FAILURES, Failure

_HEAD = """# What goes wrong, and what comes of it

Made from `crds/llava_api/failures.py` by `make generate`. The reason stands in `status.failure.reason`, or in the
reason of a condition while the run waits; the hint stands in `status.failure.hint`. The test is the one that causes the
row for real: a stage's by the stage's own process, one of the operator's against a real API server.

- **Retried**: another attempt follows by itself, from the newest whole checkpoint.
- **Counts**: against `spec.training.maxRestarts`. What the cluster does to a run counts nothing.
- **Evaluation's pods** are retried one by one, within an attempt: twice each where the failure is retried and counts,
  and as often as it takes where the cluster takes one away. What is not retried ends the attempt and the run, and so
  does a pod that has used up its tries; what counts nothing is followed by another attempt. Answers are kept.
- **`attempts/`** lies at the root of the run's volume; with `storage.existingClaim` in `runs/UID/` of that claim.
"""
_BY_A_STAGE = """## Ends of a stage

Each has an exit code of the stage's container. The termination message has the same reason with the particulars. What
needs a GPU is raised where CUDA or NCCL would raise it, and proven by the exit that it leaves.
"""
_BY_THE_OPERATOR = """## Ends that only Kubernetes or the operator knows of
"""
_WAITED_FOR = """## What ends nothing

The run waits, consumes no restart, and goes on by itself when the cause is gone, or gets over it without waiting.
"""


def build_failures_page() -> str:
    """The whole page as Markdown."""
    ends = [failure for failure in FAILURES if not failure.waits]
    return "\n".join(
        (
            _HEAD,
            _BY_A_STAGE,
            _table(
                ("exit code", "reason", "observed", "retried", "counts", "what to do", "test"),
                ((str(f.exit_code), *_ended(f)) for f in ends if f.exit_code is not None),
            ),
            _BY_THE_OPERATOR,
            _table(
                ("reason", "observed", "retried", "counts", "what to do", "test"),
                (_ended(f) for f in ends if f.exit_code is None),
            ),
            _disruptions(),
            _WAITED_FOR,
            _table(
                ("reason", "observed", "what to do", "test"),
                ((f"`{f.reason}`", f.observed, f.hint, _test(f)) for f in FAILURES if f.waits),
            ),
        )
    )


def _ended(failure: Failure) -> tuple[str, ...]:
    counts = "yes" if failure.counts else "no"
    if failure.first_is_free:
        counts = "from the second on"
    retried = "yes" if failure.retryable else failure.retried_if or "never"
    shown = counts if failure.retryable else ""
    return f"`{failure.reason}`", failure.observed, retried, shown, failure.hint, _test(failure)


def _test(failure: Failure) -> str:
    return f"`{failure.test}`" if failure.test else ""


def _disruptions() -> str:
    mapped = "; ".join(f"{name}: `{reason}`" for name, reason in DISRUPTIONS.items())
    return f"Reasons of a pod's condition DisruptionTarget: {mapped}.\n"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"
