"""What every child of a run carries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llava_api.constants import (
    API_VERSION,
    KIND,
    LABEL_ATTEMPT,
    LABEL_MANAGED_BY,
    LABEL_RUN,
    LABEL_STAGE,
    MANAGER,
    StageName,
)
from llava_api.spec import Download
from llava_operator.deciding.policy import Policy
from llava_operator.kube.objects import Object
from llava_operator.run import Run


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What the operator's installation adds to a run's own spec."""

    trainer_image: str
    report_url: str
    download: Download = field(default_factory=Download)
    """How sources are fetched, where a run does not say."""
    policy: Policy = field(default_factory=Policy)
    """What runs may ask for."""
    isolate_training: bool = False
    """Whether training pods get a NetworkPolicy."""
    node_loss_s: int = 30
    """Seconds for which pods of runs stay on a node that is not ready or cannot be reached."""
    pod_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that pods of runs get besides ours."""
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    notifier_image: str = ""
    """Image of the pods that send notifications: the operator's own. Empty: none can be sent."""
    notifier_pull_policy: str = "IfNotPresent"
    uses_xet: bool = False
    """Whether prepare may read hub files by Xet's client."""


def build_labels(run: Run, stage: StageName | None = None, attempt: int | None = None) -> dict[str, str]:
    """Labels of a child; with a stage, those of its pods too."""
    labels = {LABEL_MANAGED_BY: MANAGER, LABEL_RUN: run.key.name}
    if stage is not None:
        labels[LABEL_STAGE] = str(stage)
    if attempt is not None:
        labels[LABEL_ATTEMPT] = str(attempt)
    return labels


def build_metadata(run: Run, name: str, labels: dict[str, str]) -> Object:
    """Metadata of a child. Kubernetes deletes it with the run, also while no operator is there."""
    return {
        "name": name,
        "namespace": run.key.namespace,
        "labels": labels,
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": run.key.name,
                "uid": run.uid,
                "controller": True,
                # True would need the right to set finalizers on the run.
                "blockOwnerDeletion": False,
            }
        ],
    }
