"""What taints pods of a run tolerate, and for how long."""

from collections.abc import Sequence

from llava_api.spec import Toleration
from llava_operator.kube.objects import Object

LOST = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""Taints of a node that has gone. Kubernetes itself would tolerate them for 300 s: a gang's other GPUs stand still."""


def build_tolerations(given: Sequence[Toleration], node_loss_s: int) -> list[Object]:
    """The spec's own tolerations, and those of a lost node that the spec says nothing about."""
    own = [toleration.model_dump(mode="json", by_alias=True, exclude_none=True) for toleration in given]
    lost: list[Object] = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": node_loss_s}
        for key in LOST
        # Of several that match the shortest counts, so ours would come before the spec's.
        if not any(_is_about(key, toleration) for toleration in given)
    ]
    return own + lost


def _is_about(key: str, toleration: Toleration) -> bool:
    """As Kubernetes' own admission of these taints judges it."""
    return toleration.key in (key, None, "") and toleration.effect in ("NoExecute", None)
