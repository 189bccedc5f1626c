"""Proves what is known of GPUs from spec and nodes, and that what they cannot do is named with the fix."""

from typing import Any

import pytest

from llava_operator.deciding.gpus import KnownGpus, NodeGpus, find_gpus, find_shortcomings, is_asked_of_nodes
from tests.controller.makers import make_spec

GIB = 1 << 30
T4 = NodeGpus(product="Tesla-T4", count=1, memory=15 * GIB, capability=(7, 5))
A100 = NodeGpus(product="NVIDIA-A100-SXM4-80GB", count=8, memory=80 * GIB, capability=(8, 0))
BARE = NodeGpus(product="unlabelled")


def workers(**changes: Any) -> dict[str, Any]:
    return {"workers": {"gpus": 1, **changes}}


def test_the_most_of_the_nodes_counts_since_only_what_none_could_do_is_refused():
    gpus = find_gpus(make_spec(**workers()), [T4, A100, BARE])
    assert gpus == KnownGpus(
        memory=80 * GIB, memory_from="labels of a node with NVIDIA-A100-SXM4-80GB",
        capability=(8, 0), capability_from="labels of a node with NVIDIA-A100-SXM4-80GB",
    )  # fmt: skip


def test_a_node_with_fewer_gpus_than_a_pod_needs_does_not_count():
    single = NodeGpus(product="NVIDIA-H100", count=1, memory=94 * GIB, capability=(9, 0))
    assert find_gpus(make_spec(workers={"gpus": 8}), [A100, single]).memory == 80 * GIB


def test_nodes_whose_gpus_are_all_cut_up_say_nothing_of_whole_ones():
    cut = NodeGpus(product="NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", count=0, memory=40 * GIB, capability=(8, 0))
    assert find_gpus(make_spec(**workers()), [cut]) == KnownGpus()


def test_what_the_spec_says_is_believed_before_the_nodes():
    gpus = find_gpus(make_spec(**workers(gpuMemory="40Gi", computeCapability="9.0")), [T4])
    assert (gpus.memory, gpus.memory_from) == (40 * GIB, "spec.workers.gpuMemory")
    assert (gpus.capability, gpus.capability_from) == ((9, 0), "spec.workers.computeCapability")


def test_nothing_is_known_of_nodes_without_labels():
    assert find_gpus(make_spec(**workers()), [BARE]) == KnownGpus()


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        (workers(), True),
        (workers(gpuMemory="40Gi"), True),
        (workers(gpuMemory="40Gi", computeCapability="8.0"), False),
        ({"workers": {"gpus": 0}}, False),
    ],
)
def test_nodes_are_asked_only_where_the_spec_leaves_something_open(spec: dict[str, Any], asked: bool):
    assert is_asked_of_nodes(make_spec(**spec)) is asked


@pytest.mark.parametrize(
    ("capability", "training", "named"),
    [
        ((7, 0), {"precision": "fp32"}, ["needs 7.5 or newer"]),
        ((7, 5), {}, ["spec.training.precision is auto, which is bf16 on GPUs", "set it to fp32"]),
        ((7, 5), {"precision": "bf16", "attention": "flash_attention_2"}, ["set it to fp32", "set it to sdpa"]),
        ((7, 5), {"precision": "fp32", "attention": "flash_attention_2"}, ["set it to sdpa"]),
    ],
)
def test_what_a_card_cannot_do_is_named(capability: tuple[int, int], training: dict[str, Any], named: list[str]):
    spec = make_spec(training=training, **workers())
    told = "; ".join(find_shortcomings(spec, KnownGpus(capability=capability, capability_from="labels")))
    assert f"{capability[0]}.{capability[1]} (labels)" in told
    assert all(part in told for part in named)
    assert told.count("set it to") == sum(part.startswith("set it") for part in named)


@pytest.mark.parametrize(
    ("capability", "spec"),
    [
        (None, workers()),
        ((8, 0), workers()),
        ((12, 0), workers()),
        ((7, 5), {**workers(), "training": {"precision": "fp32"}}),
        ((7, 0), {"workers": {"gpus": 0}}),
    ],
)
def test_nothing_is_held_against_a_card_that_can(capability: tuple[int, int] | None, spec: dict[str, Any]):
    assert find_shortcomings(make_spec(**spec), KnownGpus(capability=capability)) == []
