"""Limits that whoever installs the chart can set: ``alerts.limits`` of its values.

An alert names one as ``$(name)``, which Helm replaces. What they mean is said in values.yaml.
"""

from dataclasses import dataclass

JOB, NAMESPACE, PAGES = "$(job)", "$(namespace)", "$(runbookUrl)"
"""What Helm puts in besides: `job` of the operator's series, its namespace, where the runbooks are served."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One number; seconds where the name says so."""

    name: str
    default: float
    least: float
    most: float

    def __str__(self) -> str:
        """As expressions and texts name it."""
        return f"$({self.name})"


_HOUR, _DAY, _WEEK = 3600, 86_400, 604_800

NO_PROGRESS = Limit(name="noProgressSeconds", default=1800, least=300, most=_WEEK)
CHECKPOINT = Limit(name="checkpointSeconds", default=2 * _HOUR, least=300, most=_WEEK)
RESTARTS = Limit(name="restarts", default=3, least=1, most=1000)
RESTARTS_WITHIN = Limit(name="restartsWithinSeconds", default=_HOUR, least=600, most=_WEEK)
WAITING = Limit(name="waitingSeconds", default=4 * _HOUR, least=300, most=_WEEK)
BLOCKED = Limit(name="blockedSeconds", default=900, least=60, most=_WEEK)
VOLUME_USED = Limit(name="volumeUsedRatio", default=0.9, least=0.01, most=1)
VALIDATION_LOSS = Limit(name="validationLossRatio", default=1.1, least=1.001, most=100)
FAILED = Limit(name="failedSeconds", default=_HOUR, least=300, most=_WEEK)
FAILED_ALIKE = Limit(name="failedAlike", default=3, least=2, most=1000)
API_ERRORS = Limit(name="apiErrorRatio", default=0.1, least=0.001, most=1)
REFUSED_REPORTS = Limit(name="refusedReportRatio", default=0.1, least=0.001, most=1)
# The largest bucket of the histogram ends at 60 s: nothing is ever said to be above.
QUEUE_WAIT = Limit(name="queueWaitSeconds", default=30, least=1, most=59)
# An authority of the operator's own is replaced 90 days before its end, and nobody is to be told of it while it need
# not be.
CERTIFICATE = Limit(name="certificateSeconds", default=21 * _DAY, least=_HOUR, most=60 * _DAY)

LIMITS = (
    NO_PROGRESS, CHECKPOINT, RESTARTS, RESTARTS_WITHIN, WAITING, BLOCKED, VOLUME_USED, VALIDATION_LOSS, FAILED,
    FAILED_ALIKE, API_ERRORS, REFUSED_REPORTS, QUEUE_WAIT, CERTIFICATE,
)  # fmt: skip


def fill(text: str) -> str:
    """The text as by the chart's own values."""
    for limit in LIMITS:
        text = text.replace(str(limit), str(limit.default))
    return text.replace(JOB, "job").replace(NAMESPACE, "namespace").replace(PAGES, "pages")
