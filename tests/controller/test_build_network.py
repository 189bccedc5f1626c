"""Proves how processes of different pods are told to talk: variables, adapters, and memory for /dev/shm."""

from typing import Any

import pytest

from llava_api.constants import StageName
from llava_operator.build.environment import build_environment
from llava_operator.build.resources import build_resources
from llava_operator.run import Run
from tests.controller.makers import make_attempt, make_run

NETWORK = {"interface": "eth0", "hca": "mlx5_0,mlx5_1", "resource": "rdma/hca", "debug": "INFO"}


def gpu_run(**workers: Any) -> Run:
    return make_run(
        workers={"replicas": 2, "gpus": 4, **workers}, training={"batch": {"perDevice": 1, "global": 8}},
        alignment={"dataset": {"source": "pvc://pairs/", "format": "llava", "file": "a.json"}, "freshProjector": True},
    )  # fmt: skip


def variables(run: Run, stage: StageName) -> dict[str, str]:
    return {one["name"]: one["value"] for one in build_environment(make_attempt(run, stage)) if "value" in one}


@pytest.mark.parametrize("stage", [StageName.ALIGN, StageName.TRAIN])
def test_training_pods_are_told_their_network(stage: StageName):
    found = variables(gpu_run(network=NETWORK), stage)
    assert {name: value for name, value in found.items() if name.startswith(("NCCL", "GLOO"))} == {
        "NCCL_SOCKET_IFNAME": "eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_IB_HCA": "mlx5_0,mlx5_1",
        "NCCL_DEBUG": "INFO",
    }
    assert build_resources(make_attempt(gpu_run(network=NETWORK), stage))["limits"]["rdma/hca"] == "1"
    assert build_resources(make_attempt(gpu_run(network=NETWORK), stage))["requests"]["rdma/hca"] == "1"


@pytest.mark.parametrize("stage", [StageName.PREPARE, StageName.MERGE, StageName.EVALUATE])
def test_other_pods_need_no_network_of_their_own(stage: StageName):
    run = gpu_run(network=NETWORK)
    assert not [name for name in variables(run, stage) if name.startswith(("NCCL", "GLOO"))]
    assert "rdma/hca" not in build_resources(make_attempt(run, stage))["requests"]


@pytest.mark.parametrize(
    ("interface", "nccl", "gloo"),
    [("=eth0", "=eth0", "eth0"), ("^lo,docker0", "^lo,docker0", None), (None, None, None)],
)
def test_gloo_is_told_a_name_only(interface: str | None, nccl: str | None, gloo: str | None):
    found = variables(gpu_run(network={"interface": interface}), StageName.TRAIN)
    assert (found.get("NCCL_SOCKET_IFNAME"), found.get("GLOO_SOCKET_IFNAME")) == (nccl, gloo)


def test_on_cpus_only_gloo_is_told():
    found = variables(gpu_run(gpus=0, network=NETWORK), StageName.TRAIN)
    assert [name for name in found if name.startswith(("NCCL", "GLOO"))] == ["GLOO_SOCKET_IFNAME"]


def test_a_pod_without_gpus_sees_none_whatever_the_image_asks_for():
    run = gpu_run()
    assert variables(run, StageName.PREPARE)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in variables(run, StageName.TRAIN)


def test_shared_memory_is_memory_of_training_pods():
    resources = {"requests": {"memory": "1Gi"}, "limits": {"memory": "4Gi"}}
    run = gpu_run(shmSize="256Mi", resources=resources)
    made = build_resources(make_attempt(run, StageName.TRAIN))
    assert (made["requests"]["memory"], made["limits"]["memory"]) == ("1280Mi", "4352Mi")
    assert build_resources(make_attempt(run, StageName.MERGE))["limits"]["memory"] == "6Gi"


def test_shared_memory_is_added_to_memory_in_any_unit():
    run = gpu_run(shmSize=1, resources={"limits": {"memory": "1G"}})
    assert build_resources(make_attempt(run, StageName.TRAIN))["limits"]["memory"] == "1000000001"
