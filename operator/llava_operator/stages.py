"""The one table of stages: what each is called, what its pods get, how often it is tried.

Which stages a run has, and in which order, ``llava_api.stages`` says.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llava_api.constants import STAGE_CONDITION, Condition, StageName
from llava_api.spec import Evaluation, Merge, Prepare, Publish, Resources, Spec, Workers

GRACE_PERIOD_S = 30
"""Seconds that pods of stages other than training have when they are asked to stop."""
RETRIES = 2
"""How often a stage other than training is tried again after a failure of its own that may pass; in evaluation, each of
its shards, by the Job controller."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage is to the operator."""

    name: StageName
    gerund: str
    """Reason of the Event when it begins."""
    resources: Callable[[Spec], Resources]
    """What the run gives each of its pods."""
    default_resources: Resources
    """CPU and memory, where the run gives none."""
    is_gang: bool = False
    """Whether it runs over all workers at once, which meet through a Service and fail together."""
    shards: Callable[[Spec], int] | None = None
    """In how many parts its pods share its work, each by itself: one that fails is replaced by itself."""
    fetches: bool = False
    """Whether it gets what sources are fetched with: Secrets, authorities, proxies."""
    publishes: bool = False
    """Whether it gets what destinations are reached with, and signed with: their Secrets, claims to write to."""
    follows_node_selector: bool = True
    gpus: Callable[[Spec], int] = lambda _: 0
    """GPUs of each pod."""

    @property
    def condition(self) -> Condition:
        """Type of the condition that says that it has ended well."""
        return STAGE_CONDITION[self.name]

    @property
    def is_sharded(self) -> bool:
        """Whether the Job controller replaces its pods one by one."""
        return self.shards is not None

    def num_pods(self, spec: Spec) -> int:
        """Pods of its Job."""
        if self.shards is not None:
            return self.shards(spec)
        return spec.workers.replicas if self.is_gang else 1

    def grace_period_s(self, spec: Spec) -> int:
        """Seconds that a pod has when it is asked to stop."""
        return spec.workers.grace_period_seconds if self.is_gang else GRACE_PERIOD_S

    def retries(self, spec: Spec) -> int:
        """How often it is tried again after a failure of its own."""
        return spec.training.max_restarts if self.is_gang else RETRIES


_PUBLISH_DEFAULT: Resources = Publish.model_fields["resources"].get_default()


def _publish_resources(spec: Spec) -> Resources:
    return spec.publish.resources if spec.publish is not None else _PUBLISH_DEFAULT


STAGES: dict[StageName, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name=StageName.PREPARE,
            gerund="Preparing",
            resources=lambda spec: spec.prepare.resources,
            default_resources=Prepare().resources,
            fetches=True,
            # It is the first to use the run's volume: where a volume binds to a zone, it must be training's zone.
            follows_node_selector=True,
        ),
        Stage(
            name=StageName.ALIGN,
            gerund="Aligning",
            resources=lambda spec: spec.workers.resources,
            default_resources=Workers().resources,
            is_gang=True,
            gpus=lambda spec: spec.workers.gpus,
        ),
        Stage(
            name=StageName.TRAIN,
            gerund="Training",
            resources=lambda spec: spec.workers.resources,
            default_resources=Workers().resources,
            is_gang=True,
            gpus=lambda spec: spec.workers.gpus,
        ),
        Stage(
            name=StageName.MERGE,
            gerund="Merging",
            resources=lambda spec: spec.merge.resources,
            default_resources=Merge().resources,
            # It needs no GPU, and need not stand on a node that has some.
            follows_node_selector=False,
        ),
        Stage(
            name=StageName.EVALUATE,
            gerund="Evaluating",
            resources=lambda spec: spec.evaluation.resources,
            default_resources=Evaluation().resources,
            shards=lambda spec: spec.evaluation.workers.replicas,
            gpus=lambda spec: spec.evaluation.num_gpus,
        ),
        Stage(
            name=StageName.PUBLISH,
            gerund="Publishing",
            resources=_publish_resources,
            default_resources=_PUBLISH_DEFAULT,
            publishes=True,
            # As merge.
            follows_node_selector=False,
        ),
    )
}
