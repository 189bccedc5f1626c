"""One pass over one run: observe, decide, and then either commit an intent or act on one."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from llava_api.constants import TRAINING_STAGES, Condition, StageName
from llava_api.status import ConditionStatus, Status
from llava_operator.acting.creation import ObstacleError, create_child, is_controlled_by
from llava_operator.acting.events import EventPublisher, Transition
from llava_operator.acting.nodes import Nodes
from llava_operator.acting.observe import Observer
from llava_operator.acting.report_authority import Authority
from llava_operator.build.common import Platform
from llava_operator.build.config import build_config_map, build_report_ca
from llava_operator.build.job import build_job
from llava_operator.build.network_policy import build_network_policy
from llava_operator.build.service import build_rendezvous_service
from llava_operator.build.volume import build_volume_claim
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs
from llava_operator.clock import to_time
from llava_operator.deciding.decide import Commit, Observation, Obstacle, ObstacleKind, Start, Wait, decide
from llava_operator.deciding.policy import find_violations
from llava_operator.deciding.status import dump_status, merge_patch
from llava_operator.kube.client import ConflictError, Kube, KubeError, NotFoundError
from llava_operator.kube.kinds import CONFIG_MAPS, JOBS, NETWORK_POLICIES, RUNS, SERVICES, VOLUME_CLAIMS
from llava_operator.kube.objects import Key, Object
from llava_operator.run import Run, UnreadableError, current_stage, parse_run, parse_status, stage_of

logger = logging.getLogger(__name__)

LAST_RETRY_S = 60.0
"""Longest wait before a child that was refused for the time being is tried again."""


class StatusPrunedError(KubeError):
    """The API server took a status and kept nothing of what was new in it: the CRD does not know these fields."""


@dataclass(kw_only=True)
class _Memory:
    """What a pass leaves to the next one over the same run. All of it can be lost."""

    uid: str
    obstacle: Obstacle | None = None
    num_refusals: int = 0
    published_ca: str | None = None


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
    platform: Platform
    now: Callable[[], datetime]
    _memories: dict[Key, _Memory] = field(default_factory=dict)

    async def reconcile(self, key: Key) -> float | None:
        """Bring one run a step further.

        Returns:
            Seconds after which to look again, if nothing happens before; None if only an event can change anything.

        Raises:
            KubeError: the API server could not be asked or told; the pass is to be repeated.
        """
        observer = Observer(kube=self.kube, children=self.children, progress=self.progress, nodes=self.nodes)
        raw = await observer.observe_run(key)
        if raw is None:
            self._forget(key)
            self.runs.forget(key)
            return None
        self.runs.note(raw)
        try:
            run = parse_run(raw)
        except UnreadableError as error:
            return await self._report_unreadable(key, raw, str(error))
        now = self.now()
        memory = self._memory(run)
        seen = self._judge(await observer.observe_children(run, memory.obstacle, now))
        if seen.job is not None:
            # Whatever stood in its way: it is there, and the next stage has met nothing yet.
            memory.obstacle, memory.num_refusals = None, 0
        match decide(seen):
            case Commit(status=status):
                return await self._commit(seen, status)
            case Start(stage=stage, attempt=attempt):
                await self._publish_events(run)
                return await self._start(run, stage, attempt)
            case Wait(until=until):
                return await self._wait(run, until, now)

    def _judge(self, seen: Observation) -> Observation:
        """Hold what the next pods would be given against the installation's policy."""
        stage = current_stage(seen.run.status)
        if stage is None or seen.job is not None:
            return seen
        return replace(seen, violations=find_violations(seen.run.spec, self.platform.policy, stage.name))

    def _memory(self, run: Run) -> _Memory:
        memory = self._memories.get(run.key)
        if memory is None or memory.uid != run.uid:
            self._forget(run.key)
            memory = self._memories[run.key] = _Memory(uid=run.uid)
        return memory

    def _forget(self, key: Key) -> None:
        if memory := self._memories.pop(key, None):
            self.progress.forget(memory.uid)

    async def _wait(self, run: Run, until: datetime | None, now: datetime) -> float | None:
        if run.deleting:
            return None
        are_published = await self._publish_events(run)
        if (stage := current_stage(run.status)) is not None:
            await self._hand_out_authority(run, stage.name, stage.attempt)
        else:
            self._forget(run.key)
        delays = [] if until is None else [max(0.0, (until - now).total_seconds())]
        # Nothing else may ever come of a run that has ended.
        return min([*delays, *([] if are_published else [LAST_RETRY_S])], default=None)

    async def _commit(self, seen: Observation, status: Status) -> float | None:
        run = seen.run
        patch = merge_patch(dump_status(run.status), dump_status(status))
        body = {"metadata": {"resourceVersion": run.resource_version, "uid": run.uid}, "status": patch}
        try:
            written = await self.kube.patch(RUNS, run.key.namespace, run.key.name, body, subresource="status")
        except ConflictError as error:
            # The run has changed since it was read: what was decided may be wrong by now.
            logger.info("pass over %s thrown away: %s", run.key, error)
            return 0.0
        if written["metadata"]["resourceVersion"] == run.resource_version:
            raise StatusPrunedError(
                f"nothing new of {', '.join(sorted(patch))} was kept in the status of {run.key}: the CRD is older than "
                "this operator; install the CRD of its version"
            )
        self.runs.note(written)
        self._log_transitions(run, status)
        if status.progress is not None and status.progress == seen.progress:
            self.progress.note_written(run.uid, status.progress, seen.now)
        return 0.0

    def _log_transitions(self, run: Run, status: Status) -> None:
        for stage in status.stages:
            if stage.state is not stage_of(run.status, stage.name).state:
                logger.info("%s: %s-%d is %s: %s", run.key, stage.name, stage.attempt, stage.state, stage.message)

    async def _start(self, run: Run, stage: StageName, attempt: int) -> float | None:
        memory = self._memory(run)
        try:
            await self._create_children(run, stage, attempt)
        except ObstacleError as error:
            memory.num_refusals += 1
            delay_s = min(LAST_RETRY_S, 2.0 ** min(memory.num_refusals - 1, 16))
            retry_at = self.now() + timedelta(seconds=max(delay_s, error.retry_after_s))
            memory.obstacle = Obstacle(kind=error.kind, message=str(error), retry_at=retry_at)
            logger.warning("%s: %s", run.key, error)
            return 0.0
        memory.obstacle, memory.num_refusals = None, 0
        return 0.0

    async def _create_children(self, run: Run, stage: StageName, attempt: int) -> None:
        # A claim that vanishes later is not made anew: what earlier stages wrote would be missing from it.
        if stage is StageName.PREPARE:
            await create_child(self.kube, run, VOLUME_CLAIMS, build_volume_claim(run))
        await self._hand_out_authority(run, stage, attempt)
        await create_child(self.kube, run, CONFIG_MAPS, build_config_map(run, stage, attempt, self.platform))
        if stage in TRAINING_STAGES:
            if self.platform.isolate_training:
                # Before there are pods to reach: where it cannot be made, the run waits.
                await create_child(self.kube, run, NETWORK_POLICIES, build_network_policy(run, stage))
            await create_child(self.kube, run, SERVICES, build_rendezvous_service(run, stage))
        job = await create_child(self.kube, run, JOBS, build_job(run, stage, attempt, self.platform))
        self.children.note_job(job)

    async def _hand_out_authority(self, run: Run, stage: StageName, attempt: int) -> None:
        """Have the run's pods trust the reporting endpoint, also after its authority has changed.

        Reporting never stops a run: where it cannot be done an Event says so, and a later pass tries again.
        """
        certificate, memory = self.authority.certificate, self._memory(run)
        if certificate is None or memory.published_ca == certificate:
            return
        try:
            await self._write_authority(run, certificate)
            memory.published_ca = certificate
        except (KubeError, ObstacleError) as error:
            logger.warning("%s: its progress cannot be reported for now: %s", run.key, error)
            await self._publish_unreported(run, stage, attempt, str(error))

    async def _write_authority(self, run: Run, certificate: str) -> None:
        body = build_report_ca(run, certificate)
        name = body["metadata"]["name"]
        try:
            # After a restart it is there, and is asked for rather than written.
            found = await self.kube.get(CONFIG_MAPS, run.key.namespace, name)
        except NotFoundError:
            found = await create_child(self.kube, run, CONFIG_MAPS, body)
        if not is_controlled_by(found["metadata"], run.uid):
            raise ObstacleError(ObstacleKind.NAME_CONFLICT, f"configmaps {name} does not belong to this run")
        if found.get("data") != body["data"]:
            await self.kube.patch(CONFIG_MAPS, run.key.namespace, name, {"data": body["data"]})

    async def _publish_unreported(self, run: Run, stage: StageName, attempt: int, why: str) -> None:
        started = stage_of(run.status, stage).start_time
        assert started is not None, "an attempt has been begun"
        transition = Transition(
            time=started, type="Warning", reason=UNREPORTED, action="Report", about=f"{stage}-{attempt}",
            note=f"{stage} runs, but its progress cannot be reported: {why}",
        )  # fmt: skip
        await self._publish(run.key, run.uid, transition)

    async def _publish(self, key: Key, uid: str, transition: Transition) -> bool:
        return await self._tell(key, self.events.publish(key, uid, transition))

    async def _publish_events(self, run: Run) -> bool:
        return await self._tell(run.key, self.events.publish_status(run.key, run.uid, run.status))

    async def _tell(self, key: Key, publishing: Awaitable[None]) -> bool:
        """Whether Events could be made. They are for people: the run goes on without, and a later pass tries again."""
        try:
            await publishing
        except KubeError as error:
            logger.warning("%s: an Event could not be created: %s", key, error)
            return False
        return True

    async def _report_unreadable(self, key: Key, raw: Object, message: str) -> float | None:
        """Say that a run is none that this version understands. It is left alone until it changes."""
        logger.error("%s cannot be read by this version of the operator: %s", key, message)
        meta = raw["metadata"]
        transition = Transition(
            time=meta["creationTimestamp"], type="Warning", reason=UNREADABLE, action="Read", note=message,
            about=f"generation-{meta.get('generation', 1)}",
        )  # fmt: skip
        delay_s = None if await self._publish(key, meta["uid"], transition) else LAST_RETRY_S
        try:
            status = parse_status(raw)
        except UnreadableError:
            return delay_s
        patch = merge_patch(dump_status(status), dump_status(_mark_unreadable(status, message, self.now())))
        if patch:
            body = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": patch}
            await self.kube.patch(RUNS, key.namespace, key.name, body, subresource="status")
        return delay_s


UNREADABLE = "Unreadable"
"""Reason of Event and condition when a run was written for another version."""
UNREPORTED = "ProgressUnreported"
"""Reason of the Event when a run's progress cannot be reported."""


def _mark_unreadable(status: Status, message: str, now: datetime) -> Status:
    before = next((held for held in status.conditions if held.type is Condition.READY), None)
    since = before.last_transition_time if before and before.status == "False" else to_time(now)
    ready = ConditionStatus(
        type=Condition.READY, status="False", reason=UNREADABLE, message=message, last_transition_time=since
    )
    others = tuple(held for held in status.conditions if held.type is not Condition.READY)
    return status.model_copy(update={"conditions": (ready, *others)})
