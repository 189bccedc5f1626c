"""Makes the children of an attempt: all that its pods need side by side, and then its Job."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from llava_api.stages import stages_of
from llava_operator.acting.creation import create_child, find_or_create_child
from llava_operator.build.common import Platform
from llava_operator.build.config import build_config_map
from llava_operator.build.job import build_job
from llava_operator.build.network_policy import build_network_policy
from llava_operator.build.service import build_rendezvous_service
from llava_operator.build.volume import build_volume_claim
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import CONFIG_MAPS, JOBS, NETWORK_POLICIES, SERVICES, VOLUME_CLAIMS
from llava_operator.kube.objects import Object
from llava_operator.run import Attempt
from llava_operator.stages import STAGES


async def start_attempt(
    kube: Kube, attempt: Attempt, platform: Platform, *, is_new: bool, hand_out: Callable[[], Awaitable[None]]
) -> Object:
    """Make what an attempt needs, or find it made, and its Job.

    Args:
        kube: where.
        attempt: which.
        platform: what the installation adds.
        is_new: whether no attempt of the run has had a Job yet. A claim that vanishes later is not made anew: what
            earlier stages wrote would be missing from it.
        hand_out: has the run's pods trust the reporting endpoint.

    Returns:
        The Job.

    Raises:
        ObstacleError: a child's name belongs to someone else, or the API server does not want it.
        KubeError: the API server could not be asked.
    """
    needed = _create_needed(kube, attempt, platform, is_new=is_new)
    for outcome in await asyncio.gather(*needed, hand_out(), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
    return await create_child(kube, attempt.run, JOBS, build_job(attempt, platform))


def _create_needed(kube: Kube, attempt: Attempt, platform: Platform, *, is_new: bool) -> Iterator[Awaitable[Object]]:
    run, stage = attempt.run, attempt.stage
    if is_new and platform.isolate_training:
        # Like the claim with the run, and long before there are pods to reach.
        for name in filter(lambda one: STAGES[one].is_gang, stages_of(run.spec)):
            yield create_child(kube, run, NETWORK_POLICIES, build_network_policy(run, name))
    if is_new and run.spec.storage.existing_claim is None:
        yield create_child(kube, run, VOLUME_CLAIMS, build_volume_claim(run))
    yield create_child(kube, run, CONFIG_MAPS, build_config_map(attempt, platform))
    if stage.is_gang:
        if platform.isolate_training:
            # Somebody may have deleted it: where it cannot be made, the run waits.
            yield find_or_create_child(kube, run, NETWORK_POLICIES, build_network_policy(run, stage.name))
        yield create_child(kube, run, SERVICES, build_rendezvous_service(run, stage.name))
