"""What the operator's cluster tests share: a client, manifests, and a kubelet that is none.

The control plane is real, so the real Job controller makes pods. No node runs them: the fake kubelet writes their
status instead.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config

from llava_api.constants import API_VERSION, KIND, LABEL_ATTEMPT, LABEL_STAGE, STAGE_CONTAINER, StageName
from llava_api.report import EvaluateNumbers, MergeNumbers, PrepareNumbers, Score, StageResult, TrainNumbers
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import KubeError
from llava_operator.kube.kinds import CHILD_SELECTOR, PODS, Kind
from llava_operator.kube.objects import Object

T = TypeVar("T")
NAMESPACES = Kind("api/v1", "namespaces")

RESULTS = {
    StageName.PREPARE: StageResult(
        stage=StageName.PREPARE, attempt=1,
        prepare=PrepareNumbers(samples_train=8, samples_validation=2, pairs_train=9, pairs_validation=3, images=10,
                               supervised_tokens=99,
                               longest_sample_tokens=40, overlong_samples=0),
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
}  # fmt: skip
"""What each stage says in its termination message when all is well."""


def make_run(name: str, namespace: str, **spec: Any) -> Object:
    """A small valid run on two CPU workers."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": "pvc://models/llava"},
            "dataset": {"source": "pvc://data/set", "format": "llava", "file": "train.json"},
            "training": {"batch": {"perDevice": 1, "global": 2}},
            "workers": {"replicas": 2, "gpus": 0, "gracePeriodSeconds": 15},
            "evaluation": {"gpus": 0},
            "storage": {"size": "1Gi"},
            **spec,
        },
    }


@contextlib.asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[ApiClient]:
    """A client with an administrator's rights."""
    configuration = Configuration()
    await load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
    async with ApiClient(configuration) as api:
        yield api


def is_true(status: Object, condition: str) -> bool:
    """Whether a condition of a status holds."""
    return any(c["type"] == condition and c["status"] == "True" for c in status.get("conditions", []))


async def until(what: str, condition: Callable[[], Awaitable[T | None]], *, timeout_s: float = 30) -> T:
    """The first truthy result of ``condition``.

    Raises:
        AssertionError: after ``timeout_s`` seconds; names ``what``.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        await asyncio.sleep(0.1)
    return found


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def running() -> Object:
    """Status of a pod whose container runs."""
    return _status("Running", {"running": {"startedAt": _now()}})


def ended(exit_code: int, message: str, *, reason: str = "") -> Object:
    """Status of a pod whose container has ended."""
    terminated = {
        "exitCode": exit_code, "message": message, "startedAt": _now(), "finishedAt": _now(),
        "reason": reason or ("Error" if exit_code else "Completed"),
    }  # fmt: skip
    return _status("Failed" if exit_code else "Succeeded", {"terminated": terminated})


def _status(phase: str, state: Object) -> Object:
    container = {
        "name": STAGE_CONTAINER, "state": state, "ready": phase == "Running", "restartCount": 0, "image": "i",
        "imageID": "i",
    }  # fmt: skip
    return {"phase": phase, "containerStatuses": [container]}


def succeed(pod: Object) -> Object | None:
    """Behaviour of a good stage: every pod runs, then succeeds with its stage's result."""
    if pod["status"]["phase"] == "Pending":
        return running()
    labels = pod["metadata"]["labels"]
    result = RESULTS[StageName(labels[LABEL_STAGE])].model_copy(update={"attempt": int(labels[LABEL_ATTEMPT])})
    return ended(0, result.to_termination_message())


def deliver(pod: Object) -> Object:
    """Behaviour of the pod of a notification that is taken."""
    return ended(0, "https://hooks.example answers 202")


@dataclass
class FakeKubelet:
    """Gives every pod of ours the status that ``behave`` says, until it has ended."""

    kube: Kube
    namespace: str
    behave: Callable[[Object], Object | None] = succeed
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
