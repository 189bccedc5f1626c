"""What a stage is said to wait for."""

from typing import Any

import pytest

from llava_api.constants import StageName
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.waiting import describe_waiting, list_needs
from llava_operator.stages import STAGES
from tests.controller.makers import NOW, begun, commit, make_job, make_pod, make_run, make_spec

SPEC: dict[str, Any] = {
    "model": {"source": "hf://a/b", "secretRef": {"name": "hub"}},
    "dataset": {"source": "s3://b/p", "format": "llava", "file": "f", "secretRef": {"name": "s3"}},
    "alignment": {"dataset": {"source": "s3://b/p", "format": "llava", "file": "f", "secretRef": {"name": "s3"}}},
    "download": {"caConfigMap": "corporate", "secretRef": {"name": "proxies"}},
}


def test_prepare_needs_what_the_run_names_and_later_stages_nothing() -> None:
    spec = make_spec(**SPEC)
    needs = ["Secret hub", "Secret s3", "Secret proxies", "ConfigMap corporate"]
    assert list_needs(spec, STAGES[StageName.PREPARE]) == needs
    assert list_needs(spec, STAGES[StageName.TRAIN]) == []
    assert list_needs(make_spec(), STAGES[StageName.PREPARE]) == []


@pytest.mark.parametrize(
    ("waiting", "needs", "told"),
    [
        ("ContainerCreating", ["Secret hub", "ConfigMap corporate"],
         "pod pod-0 waits: ContainerCreating (it needs Secret hub, ConfigMap corporate; kubectl describe pod pod-0 "
         "says if one is missing)"),
        ("ContainerCreating", [], "pod pod-0 waits: ContainerCreating"),
        ("ImagePullBackOff: no such image", ["Secret hub"], "pod pod-0 waits: ImagePullBackOff: no such image"),
    ],
)  # fmt: skip
def test_missing_secret_is_told_where_kubernetes_says_nothing(waiting: str, needs: list[str], told: str) -> None:
    job = make_job(begun())
    assert describe_waiting(job, [make_pod(waiting=waiting)], 1, needs) == told


def test_it_stands_in_the_stages_message() -> None:
    status = begun()
    run = make_run(status, **SPEC)
    pods = (make_pod(waiting="ContainerCreating"),)
    said = commit(Observation(run=run, job=make_job(status), pods=pods, now=NOW)).stages[0].message
    assert "it needs Secret hub, Secret s3, Secret proxies, ConfigMap corporate" in said
