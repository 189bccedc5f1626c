"""Writes of a run's status: each is made upon the version that was read, and told once to whoever counts them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from llava_api.status import Status
from llava_operator.acting.memory import Memory
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.status import dump_status, merge_patch
from llava_operator.deciding.stillness import date_report
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import ConflictError, KubeError
from llava_operator.kube.kinds import RUNS
from llava_operator.kube.objects import Key, Object
from llava_operator.run import Run, stage_of

logger = logging.getLogger(__name__)


class StatusPrunedError(KubeError):
    """The API server took a status and kept nothing of what was new in it: the CRD does not know these fields."""


@dataclass(frozen=True, kw_only=True)
class StatusWriter:
    """Writes statuses, and has those noted that were written."""

    kube: Kube
    runs: Runs
    progress: ProgressBook
    note_written: Callable[[Key, Status, Status], None]

    async def write(self, seen: Observation, status: Status, memory: Memory) -> Object | None:
        """Write a status; returns the run as it is then, or None if it has changed since it was read.

        Raises:
            StatusPrunedError: nothing of it was kept.
            KubeError: the API server did not answer, or refused; ``settle`` finds out what came of it.
        """
        run = seen.run
        patch = merge_patch(dump_status(run.status), dump_status(status))
        body = {"metadata": {"resourceVersion": run.resource_version, "uid": run.uid}, "status": patch}
        memory.unanswered = run.status
        try:
            written = await self.kube.patch(RUNS, run.key.namespace, run.key.name, body, subresource="status")
        except ConflictError as error:
            # What was decided may be wrong by now.
            logger.info("pass over %s thrown away: %s", run.key, error)
            return None
        if written["metadata"]["resourceVersion"] == run.resource_version:
            raise StatusPrunedError(
                f"nothing new of {', '.join(sorted(patch))} was kept in the status of {run.key}: the CRD is older than "
                "this operator; install the CRD of its version"
            )
        self.runs.note(written)
        memory.written_at, memory.unanswered = seen.now, None
        self.note_written(run.key, run.status, status)
        _log_transitions(run, status)
        if seen.progress is not None and status.progress == date_report(run.status, seen.progress):
            self.progress.note_written(run.uid, seen.progress, seen.now)
        return written

    def settle(self, run: Run, memory: Memory) -> None:
        """Note a write whose answer was lost, if it was carried out: a status that is another now is our own."""
        before, memory.unanswered = memory.unanswered, None
        if before is not None and before != run.status:
            self.note_written(run.key, before, run.status)


def _log_transitions(run: Run, status: Status) -> None:
    for stage in status.stages:
        if stage.state is not stage_of(run.status, stage.name).state:
            logger.info("%s: %s-%d is %s: %s", run.key, stage.name, stage.attempt, stage.state, stage.message)
