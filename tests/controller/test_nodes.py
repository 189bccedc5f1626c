"""Proves how nodes are asked: by labels, seldom, and without harm where that is not allowed."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from llava_api.constants import API_VERSION, KIND, LABEL_RUN
from llava_operator.acting.nodes import KEPT, MAX_SELECTORS, Nodes, read_labels
from llava_operator.acting.observe import Observer
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.deciding.gpus import NodeGpus
from llava_operator.deciding.observation import Observation
from llava_operator.kube.errors import ForbiddenError, RetryableError
from llava_operator.kube.kinds import NODES, Kind
from llava_operator.kube.objects import Object
from tests.controller.makers import KEY, NOW, KnownRuns, commit, make_run

LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.count": "8",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.compute.major": "9",
    "nvidia.com/gpu.compute.minor": "0",
}
H100 = NodeGpus(product="NVIDIA-H100-80GB-HBM3", count=8, memory=81559 * 2**20, capability=(9, 0))


class ApiServer:
    """Answers lists, or refuses after the first object; remembers the selectors that it was asked with."""

    def __init__(self, *nodes: Object, refuse: Exception | None = None) -> None:
        self.nodes, self.refuse, self.asked = nodes, refuse, []

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> AsyncIterator[Object]:
        assert (kind, namespace) == (NODES, None)
        self.asked.append(selector)
        if self.refuse:
            raise self.refuse
        for node in self.nodes:
            yield node


class NoPods:
    """Lists pods, of which there are none."""

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> AsyncIterator[Object]:
        for pod in ():
            yield pod


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


def make_nodes(server: ApiServer, clock: Clock | None = None) -> Nodes:
    return Nodes(kube=server, now=clock or Clock())  # type: ignore[arg-type]


def node(labels: dict[str, str] = LABELS) -> Object:
    return {"metadata": {"name": "n", "uid": "u", "labels": labels}}


async def test_nodes_are_selected_by_the_runs_labels_and_by_having_a_gpu():
    server = ApiServer(node(), node())
    assert await make_nodes(server).list_gpus({"zone": "b", "pool": "a"}) == {H100}
    assert server.asked == ["pool=a,zone=b,nvidia.com/gpu.memory"]


async def test_an_answer_is_kept_for_minutes_and_for_its_selector_alone():
    server, clock = ApiServer(node()), Clock()
    nodes = make_nodes(server, clock)
    for _ in range(3):
        await nodes.list_gpus({})
    await nodes.list_gpus({"pool": "a"})
    assert len(server.asked) == 2
    clock.now += KEPT + timedelta(seconds=1)
    await nodes.list_gpus({})
    assert len(server.asked) == 3


async def test_what_is_kept_has_a_bound():
    server = ApiServer()
    nodes = make_nodes(server)
    for number in range(MAX_SELECTORS + 1):
        await nodes.list_gpus({"pool": str(number)})
    await nodes.list_gpus({"pool": str(MAX_SELECTORS)})
    assert len(server.asked) == MAX_SELECTORS + 1
    await nodes.list_gpus({"pool": "0"})
    assert len(server.asked) == MAX_SELECTORS + 2


async def test_an_operator_that_may_not_list_nodes_knows_nothing_and_does_not_ask_again_at_once():
    server = ApiServer(refuse=ForbiddenError("nodes is forbidden", status=403))
    nodes = make_nodes(server)
    assert await nodes.list_gpus({}) == frozenset()
    assert await nodes.list_gpus({}) == frozenset()
    assert len(server.asked) == 1


async def test_any_other_refusal_repeats_the_pass():
    nodes = make_nodes(ApiServer(refuse=RetryableError("overloaded", status=503)))
    with pytest.raises(RetryableError):
        await nodes.list_gpus({})


def test_labels_that_make_no_sense_say_nothing():
    assert read_labels({}) == NodeGpus()
    odd = {"nvidia.com/gpu.memory": "80GB", "nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.count": ""}
    assert read_labels(odd) == NodeGpus()


@pytest.mark.parametrize(
    ("ended", "gpus", "asked"), [(True, 2, ["nvidia.com/gpu.memory"]), (False, 2, []), (True, 0, [])]
)
async def test_nodes_are_asked_when_prepare_has_ended_and_not_before(ended: bool, gpus: int, asked: list[str]):
    spec = {"workers": {"gpus": gpus}, "training": {"batch": {"perDevice": 1, "global": 2}}}
    begun = commit(Observation(run=make_run(**spec), now=NOW))
    run, server = make_run(begun, **spec), ApiServer(node())
    conditions = [{"type": "Complete", "status": "True"}] if ended else []
    job = {
        "metadata": {
            "namespace": KEY.namespace, "name": "invoices-prepare-1", "uid": "job", "labels": {LABEL_RUN: KEY.name},
            "ownerReferences": [
                {"apiVersion": API_VERSION, "kind": KIND, "name": KEY.name, "uid": run.uid, "controller": True}
            ],
        },
        "status": {"conditions": conditions},
    }  # fmt: skip
    children = Children(KnownRuns((KEY, run.uid)), SkippedObjects())
    children.note_job(job)
    observer = Observer(
        kube=NoPods(),  # type: ignore[arg-type]
        children=children, progress=ProgressBook(interval_s=1, writes_per_s=1), nodes=make_nodes(server),
    )  # fmt: skip
    seen = await observer.observe_children(run, NOW)
    assert server.asked == asked
    assert seen.nodes == ({H100} if asked else frozenset())
