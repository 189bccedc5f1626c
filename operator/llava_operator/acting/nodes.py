"""The GPUs of the cluster's nodes, from the labels that NVIDIA's GPU feature discovery puts on them.

Read only when a run has to be planned, kept for minutes, and done without where the operator may not list nodes.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from llava_operator.cache.views import parse_node_labels
from llava_operator.deciding.gpus import MIB, NodeGpus
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import ForbiddenError
from llava_operator.kube.kinds import NODES

logger = logging.getLogger(__name__)

KEPT = timedelta(minutes=5)
MAX_SELECTORS = 256
"""Most different node selectors remembered at a time."""
LABEL_PRODUCT = "nvidia.com/gpu.product"
LABEL_COUNT = "nvidia.com/gpu.count"
LABEL_MEMORY = "nvidia.com/gpu.memory"
"""In MiB."""
LABEL_MAJOR = "nvidia.com/gpu.compute.major"
LABEL_MINOR = "nvidia.com/gpu.compute.minor"


@dataclass(frozen=True, kw_only=True)
class _Answer:
    gpus: frozenset[NodeGpus]
    until: datetime


@dataclass(kw_only=True)
class Nodes:
    """Asks for nodes, and remembers what it was told."""

    kube: Kube
    now: Callable[[], datetime]
    _answers: dict[str, _Answer] = field(default_factory=dict)

    async def list_gpus(self, node_selector: Mapping[str, str]) -> frozenset[NodeGpus]:
        """The different GPUs of all nodes with these labels; empty where that is not known.

        Raises:
            KubeError: the API server could not be asked.
        """
        selector = ",".join((*(f"{key}={value}" for key, value in sorted(node_selector.items())), LABEL_MEMORY))
        known = self._answers.get(selector)
        if known is not None and self.now() < known.until:
            return known.gpus
        gpus = await self._ask(selector)
        while len(self._answers) >= MAX_SELECTORS:
            del self._answers[next(iter(self._answers))]
        self._answers[selector] = _Answer(gpus=gpus, until=self.now() + KEPT)
        return gpus

    async def _ask(self, selector: str) -> frozenset[NodeGpus]:
        # A cluster has thousands of nodes, but few kinds of them.
        gpus: set[NodeGpus] = set()
        try:
            async for raw in self.kube.list(NODES, None, selector):
                gpus.add(read_labels(parse_node_labels(raw)))
        except ForbiddenError as error:
            logger.info("nodes may not be listed, so nothing is known of their GPUs: %s", error)
        return frozenset(gpus)


def read_labels(labels: Mapping[str, str]) -> NodeGpus:
    """What a node's labels say of its GPUs; a label that makes no sense says nothing."""
    major, minor = _number(labels.get(LABEL_MAJOR)), _number(labels.get(LABEL_MINOR))
    memory = _number(labels.get(LABEL_MEMORY))
    return NodeGpus(
        product=labels.get(LABEL_PRODUCT, ""),
        count=_number(labels.get(LABEL_COUNT)),
        memory=memory * MIB if memory else None,
        capability=(major, minor) if major is not None and minor is not None else None,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
