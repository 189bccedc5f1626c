"""One pass over one run: observe, decide, and commit an intent or act on one that is committed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from llava_api.constants import StageName
from llava_api.spec import Spec
from llava_api.status import ApiTrouble, AttemptState, StageStatus, Status
from llava_operator.acting.api_errors import ApiErrors
from llava_operator.acting.creation import ObstacleError
from llava_operator.acting.deletion import delete_run, keep_volume, remove_attempt
from llava_operator.acting.events import EventPublisher
from llava_operator.acting.memory import LAST_RETRY_S, Memory
from llava_operator.acting.nodes import Nodes
from llava_operator.acting.notifying import Notifier
from llava_operator.acting.observe import Observer
from llava_operator.acting.report_authority import Authority, write_authority
from llava_operator.acting.starting import start_attempt
from llava_operator.acting.status_writer import StatusWriter
from llava_operator.acting.transitions import undeleted, unreadable, unreported
from llava_operator.acting.troubles import Troubles
from llava_operator.acting.unreadable import build_unreadable_patch
from llava_operator.build.common import Platform
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Commit, Delete, KeepVolume, Remove, Start, Stop, Wait
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.status import complete_status, without_texts
from llava_operator.deciding.violations import find_violations
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import ConflictError, KubeError, NotFoundError
from llava_operator.kube.kinds import JOBS, RUNS
from llava_operator.kube.objects import Key, Object
from llava_operator.run import Run, UnreadableError, attempt_of, current_stage, parse_run
from llava_operator.stages import STAGES

logger = logging.getLogger(__name__)

MAX_ROUNDS = 6
"""Steps of one pass: a begin or an end commits an intent, acts on it, and notes what that has made."""
SHORTEST_WAIT_S = 0.05
"""Before a run is looked at again for nothing but the time: whatever was calculated, no pass follows at once."""


@dataclass(kw_only=True)
class Reconciler:
    """Passes over runs."""

    kube: Kube
    children: Children
    nodes: Nodes
    runs: Runs
    progress: ProgressBook
    events: EventPublisher
    authority: Authority
    troubles: Troubles
    errors: ApiErrors
    notifier: Notifier
    platform: Platform
    now: Callable[[], datetime]
    note_written: Callable[[Key, Status, Status], None] = lambda key, before, after: None
    """Called once for each status that was written, with the one before and the one after."""
    _memories: dict[Key, Memory] = field(default_factory=dict)

    async def reconcile(self, key: Key) -> float | None:
        """Bring one run as far as it goes without an event.

        Each step either commits an intent or acts on one that is committed; after a write the pass goes on from what
        the API server has answered.

        Returns:
            Seconds after which to look again, if nothing happens before; None if only an event can change anything.

        Raises:
            KubeError: the API server could not be asked or told; the pass is to be repeated.
        """
        raw = await self._observer.observe_run(key)
        if raw is None:
            self._forget(key)
            self.runs.forget(key)
            return None
        self.runs.note(raw)
        for _ in range(MAX_ROUNDS):
            try:
                run = parse_run(raw)
            except UnreadableError as error:
                return await self._report_unreadable(key, raw, str(error))
            self._writer.settle(run, self._memory(run))
            seen = await self._observe(run)
            match decide(seen):
                case Commit(status=status):
                    written = await self._writer.write(seen, status, self._memory(run))
                    if written is None:
                        return 0.0
                    raw = written
                case Start():
                    await self._start(seen)
                case Stop(job=job, uid=uid):
                    await self._stop(run, job, uid)
                case Remove(stage=stage, attempt=attempt):
                    await self._remove(run, stage, attempt)
                case KeepVolume():
                    await self._keep_volume(run)
                case Delete():
                    return await self._delete(run)
                case Wait(until=until):
                    return await self._wait(run, until, seen.now)
        return 0.0

    async def tell_error(self, key: Key, error: KubeError) -> None:
        """Say in a run's status what the passes over it fail with, once they do so again and again.

        What cannot be written is left to the log.
        """
        trouble = self.errors.note(key, error)
        if trouble is None:
            return
        try:
            raw = await self._observer.observe_run(key)
            if raw is not None:
                await self._tell_trouble(parse_run(raw), trouble)
        except (KubeError, UnreadableError) as again:
            logger.info("%s: that its passes fail could not be told: %s", key, again)

    async def _tell_trouble(self, run: Run, trouble: ApiTrouble) -> None:
        self._writer.settle(run, self._memory(run))
        if run.deleting or current_stage(run.status) is None:
            return
        told, before = run.status.model_copy(update={"api_trouble": trouble}), run.status
        # Whatever else has changed in the spec has not been looked at.
        generation = before.observed_generation or run.generation
        shown = run.spec.evaluation.metrics[0]
        told = complete_status(told, before=before, generation=generation, shown_metric=shown, now=self.now())
        if without_texts(told) != without_texts(before):
            await self._writer.write(Observation(run=run, now=self.now()), told, self._memory(run))
        await self.events.publish_status(run.key, run.uid, told)

    def forget_errors(self, key: Key) -> bool:
        """A pass has ended well; returns whether another one has to take back what was told of those before."""
        return self.errors.forget(key)

    @property
    def _observer(self) -> Observer:
        return Observer(kube=self.kube, children=self.children, progress=self.progress, nodes=self.nodes)

    @property
    def _writer(self) -> StatusWriter:
        return StatusWriter(kube=self.kube, runs=self.runs, progress=self.progress, note_written=self.note_written)

    async def _observe(self, run: Run) -> Observation:
        """What there is of a run, and what stood in its way before."""
        now, memory = self.now(), self._memory(run)
        stage = current_stage(run.status)
        was_tried = stage is not None and memory.tried == (stage.name, stage.attempt)
        seen = await self._observer.observe_children(run, now, was_tried=was_tried)
        memory.drop_obstacle(run.generation, has_job=seen.job is not None)
        violations = (
            find_violations(_judged_spec(run, stage), self.platform.policy, STAGES[stage.name])
            if stage and seen.job is None
            else ()
        )
        deliveries = await self.notifier.look(run)
        trouble, trouble_due = await self.troubles.look(run, seen.job, seen.pods)
        text_due = memory.written_at and memory.written_at + timedelta(seconds=self.progress.interval_s)
        return replace(
            seen, obstacle=memory.obstacle, is_volume_kept=memory.is_volume_kept,
            removed=memory.removed, volume_obstacle=memory.volume_obstacle, violations=violations, text_due_at=text_due,
            default_image=self.platform.trainer_image, trouble=trouble, trouble_due_at=trouble_due,
            api_trouble=self.errors.trouble_of(run.key), deliveries=deliveries,
        )  # fmt: skip

    def _memory(self, run: Run) -> Memory:
        memory = self._memories.get(run.key)
        if memory is None or memory.uid != run.uid:
            self._forget(run.key)
            memory = self._memories[run.key] = Memory(uid=run.uid)
        return memory

    def _forget(self, key: Key) -> None:
        if memory := self._memories.pop(key, None):
            self.progress.forget(memory.uid)
            self.troubles.forget(memory.uid)
            self.notifier.forget(memory.uid)

    async def _wait(self, run: Run, until: datetime | None, now: datetime) -> float | None:
        if run.deleting:
            return None
        are_published = await self.events.publish_status(run.key, run.uid, run.status)
        send_at = await self.notifier.send(run)
        if (stage := current_stage(run.status)) is not None:
            await self._hand_out_authority(run, stage, is_new=False)
        elif not run.status.open_notifications:
            self._forget(run.key)
        delays = [max(SHORTEST_WAIT_S, (instant - now).total_seconds()) for instant in (until, send_at) if instant]
        # Nothing else may ever come of a run that has ended.
        return min([*delays, *([] if are_published else [LAST_RETRY_S])], default=None)

    async def _start(self, seen: Observation) -> None:
        run, memory = seen.run, self._memory(seen.run)
        stage = current_stage(run.status)
        assert stage is not None, "it was decided to start an attempt of it"
        is_first = stage.name is run.status.stages[0].name
        is_new = is_first and all(attempt.job_uid is None for attempt in stage.attempts)

        memory.tried = (stage.name, stage.attempt)

        async def hand_out() -> None:
            await self._hand_out_authority(run, stage, is_new=is_new)

        try:
            job = await start_attempt(
                self.kube, attempt_of(run, stage), self.platform, is_new=is_new, hand_out=hand_out
            )
        except ObstacleError as error:
            logger.warning("%s: %s", run.key, error)
            memory.obstacle = memory.meet(error, self.now())
            return
        self.children.note_job(job)

    async def _keep_volume(self, run: Run) -> None:
        memory = self._memory(run)
        try:
            await keep_volume(self.kube, run)
        except ObstacleError as error:
            logger.warning("%s: %s", run.key, error)
            memory.volume_obstacle = memory.meet(error, self.now())
            return
        memory.volume_obstacle, memory.is_volume_kept = None, True

    async def _stop(self, run: Run, job: str, uid: str) -> None:
        """Delete an attempt's Job. It is there until its pods are gone."""
        try:
            deleted = await self.kube.delete(JOBS, run.key.namespace, job, uid)
        except (NotFoundError, ConflictError):
            # It is gone already; its event is on the way.
            self.children.forget_job(Key(run.key.namespace, job), uid)
            return
        logger.info("%s: Job %s is deleted, and its pods with it", run.key, job)
        if deleted.get("kind") == "Job":
            self.children.note_job(deleted)
        else:
            self.children.forget_job(Key(run.key.namespace, job), uid)

    async def _remove(self, run: Run, stage: StageName, attempt: int) -> None:
        """Remove the children of an attempt. Where that is refused they stay until the run is deleted."""
        try:
            await remove_attempt(self.kube, run, stage, attempt)
        except ObstacleError as error:
            logger.warning("%s: children of %s-%d stay: %s", run.key, stage, attempt, error)
        self._memory(run).removed = (stage, attempt)

    async def _delete(self, run: Run) -> float | None:
        """Delete a run that has ended. Where that is refused an Event says so, and a later pass tries again."""
        await self.events.publish_status(run.key, run.uid, run.status)
        try:
            await delete_run(self.kube, run)
        except ConflictError:
            # Its author may have changed the time, or reopened it.
            return 0.0
        except ObstacleError as error:
            logger.warning("%s cannot be deleted: %s", run.key, error)
            await self.events.publish(run.key, run.uid, undeleted(run, error))
            return max(LAST_RETRY_S, error.retry_after_s)
        logger.info("%s is deleted, %s s after its end", run.key, run.spec.ttl_seconds_after_finished)
        self._forget(run.key)
        return None

    async def _hand_out_authority(self, run: Run, stage: StageStatus, *, is_new: bool) -> None:
        """Have the run's pods trust the reporting endpoint, also after its authority has changed.

        Reporting never stops a run: where it cannot be done an Event says so, and a later pass tries again.
        """
        certificate, memory = self.authority.certificate, self._memory(run)
        if certificate is None or memory.published_ca == certificate:
            return
        try:
            await write_authority(self.kube, run, certificate, is_new=is_new)
            memory.published_ca = certificate
        except (KubeError, ObstacleError) as error:
            logger.warning("%s: its progress cannot be reported for now: %s", run.key, error)
            await self.events.publish(run.key, run.uid, unreported(stage, error))

    async def _report_unreadable(self, key: Key, raw: Object, message: str) -> float | None:
        """Say that a run is none that this version understands. It is left alone until it changes."""
        logger.error("%s cannot be read by this version of the operator: %s", key, message)
        is_told = await self.events.publish(key, raw["metadata"]["uid"], unreadable(raw, message))
        if patch := build_unreadable_patch(raw, message, self.now()):
            await self.kube.patch(RUNS, key.namespace, key.name, patch, subresource="status")
        return None if is_told else LAST_RETRY_S


def _judged_spec(run: Run, stage: StageStatus) -> Spec:
    """What is held against the installation's rules. Once anything runs, no notification holds it up any more."""
    has_begun = any(attempt.job_uid for stage in run.status.stages for attempt in stage.attempts)
    spec = run.spec.model_copy(update={"notifications": ()}) if has_begun else run.spec
    newest = stage.newest
    if newest is None or newest.state is AttemptState.GONE or newest.settings.publish is None:
        return spec
    # What it was committed to is what its pod is given, whatever the spec says by now.
    return spec.model_copy(update={"publish": newest.settings.publish})
