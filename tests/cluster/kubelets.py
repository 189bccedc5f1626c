"""A kubelet that is none: what it writes of pods, and what becomes of them.

The control plane is real, so the real Job controller makes pods. No node runs them: their statuses are written here.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from llava_api.constants import LABEL_ATTEMPT, LABEL_STAGE, STAGE_CONTAINER, StageName
from llava_api.report import (
    EvaluateNumbers,
    MergeNumbers,
    PrepareNumbers,
    Published,
    PublishNumbers,
    Score,
    StageResult,
    TrainNumbers,
)
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import KubeError
from llava_operator.kube.kinds import CHILD_SELECTOR, PODS
from llava_operator.kube.objects import Object

Behaviour = Callable[[Object], Object | None]
"""From a pod to the status that it has next; none if it stays as it is."""

RESULTS = {
    StageName.PREPARE: StageResult(
        stage=StageName.PREPARE, attempt=1,
        prepare=PrepareNumbers(samples_train=800, samples_validation=2, pairs_train=900, pairs_validation=3, images=10,
                               supervised_tokens=99,
                               longest_sample_tokens=40, overlong_samples=0, publishes=True),
    ),
    StageName.ALIGN: StageResult(
        stage=StageName.ALIGN, attempt=1, digests={"projector": "sha256:p"},
        align=TrainNumbers(steps=3, final_loss=2.5, trainable_parameters=4, tokens=500, world_size=2),
    ),
    StageName.TRAIN: StageResult(
        stage=StageName.TRAIN, attempt=1, digests={"adapter": "sha256:a"},
        train=TrainNumbers(steps=12, final_loss=0.25, trainable_parameters=10, tokens=1000, world_size=2),
    ),
    StageName.MERGE: StageResult(
        stage=StageName.MERGE, attempt=1, digests={"merged": "sha256:b"},
        merge=MergeNumbers(tensors_merged=7, max_logit_difference=1e-6, max_rounding_difference=0.0,
                           peak_memory_bytes=1),
    ),
    StageName.EVALUATE: StageResult(
        stage=StageName.EVALUATE, attempt=1, digests={"report": "sha256:c"},
        evaluate=EvaluateNumbers(
            scores=(Score(metric="exact_match", split="validation", base=0.0, tuned=0.9, samples=2),), prompts=0
        ),
    ),
    StageName.PUBLISH: StageResult(
        stage=StageName.PUBLISH, attempt=1,
        publish=PublishNumbers(published=(
            Published(destination=0, what="merged", digest=f"sha256:{'d' * 64}", size_bytes=2**31, sent_bytes=2**30),
        )),
    ),
}  # fmt: skip
"""What each stage says in its termination message when all is well."""


def now() -> str:
    """This instant as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def running() -> Object:
    """Status of a pod whose container runs."""
    return _status("Running", {"running": {"startedAt": now()}})


def ended(exit_code: int, message: str, *, reason: str = "") -> Object:
    """Status of a pod whose container has ended."""
    terminated = {
        "exitCode": exit_code, "message": message, "startedAt": now(), "finishedAt": now(),
        "reason": reason or ("Error" if exit_code else "Completed"),
    }  # fmt: skip
    return _status("Failed" if exit_code else "Succeeded", {"terminated": terminated})


def _status(phase: str, state: Object) -> Object:
    container = {
        "name": STAGE_CONTAINER, "state": state, "ready": phase == "Running", "restartCount": 0, "image": "i",
        "imageID": "i",
    }  # fmt: skip
    return {"phase": phase, "containerStatuses": [container]}


def waiting(reason: str, message: str = "") -> Object:
    """Status of a pod whose container cannot be started, as the kubelet writes it."""
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    container = {
        "name": STAGE_CONTAINER, "state": state, "ready": False, "restartCount": 0, "image": "i", "imageID": "",
    }  # fmt: skip
    return {"phase": "Pending", "containerStatuses": [container]}


def do_nothing(pod: Object) -> None:
    """Behaviour of a pod that no kubelet looks after."""


def succeed(pod: Object) -> Object | None:
    """Behaviour of a good stage: every pod runs, then succeeds with its stage's result."""
    if pod["status"]["phase"] == "Pending":
        return running()
    labels = pod["metadata"]["labels"]
    result = RESULTS[StageName(labels[LABEL_STAGE])].model_copy(update={"attempt": int(labels[LABEL_ATTEMPT])})
    return ended(0, result.to_termination_message())


def holds(*stages: StageName) -> Behaviour:
    """Pods of ``stages`` run and do not end; all others succeed."""

    def behave(pod: Object) -> Object | None:
        if pod["metadata"]["labels"][LABEL_STAGE] in stages:
            return running() if pod["status"]["phase"] == "Pending" else None
        return succeed(pod)

    return behave


def deliver(pod: Object) -> Object:
    """Behaviour of the pod of a notification that is taken."""
    return ended(0, "https://hooks.example answers 202")


@dataclass
class FakeKubelet:
    """Gives every pod of ours the status that ``behave`` says, until it has ended."""

    kube: Kube
    namespace: str
    behave: Behaviour = succeed
    selector: str = CHILD_SELECTOR

    async def run(self) -> None:
        """Do so for ever."""
        while True:
            pods = [pod async for pod in self.kube.list(PODS, self.namespace, self.selector)]
            await asyncio.gather(*(self._look_after(pod) for pod in pods))
            await asyncio.sleep(0.1)

    async def _look_after(self, pod: Object) -> None:
        if pod["status"]["phase"] not in ("Pending", "Running"):
            return
        if status := self.behave(pod):
            # The Job controller may have deleted the pod in between.
            with contextlib.suppress(KubeError):
                name = pod["metadata"]["name"]
                await self.kube.patch(PODS, self.namespace, name, {"status": status}, subresource="status")
