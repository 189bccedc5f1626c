"""Whether the cluster has what the operator relies on."""

import asyncio
import logging
from collections.abc import Sequence

from llava_api.constants import OLDEST_KUBERNETES
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import ForbiddenError, KubeError, NotFoundError
from llava_operator.kube.kinds import RUNS

logger = logging.getLogger(__name__)


class UnsupportedClusterError(Exception):
    """The cluster's Kubernetes is older than what the operator relies on."""


async def wait_for_cluster(kube: Kube, namespaces: Sequence[str], *, retry_s: float) -> None:
    """Wait for the CRD: kopf ignores for ever what is not served when it starts.

    Raises:
        UnsupportedClusterError: the cluster is too old.
    """
    while True:
        for scope in namespaces or (None,):
            try:
                await _check_version(kube)
                async for _ in kube.list(RUNS, scope):
                    break
                return
            except KubeError as error:
                # One namespace that may not be read says nothing about the others.
                logger.warning("the CRD is not served yet: %s", error)
        await asyncio.sleep(retry_s)


async def _check_version(kube: Kube) -> None:
    """Look whether the cluster does what the operator relies on; one that does not say is taken as it is."""
    try:
        found = await kube.version()
    except (ForbiddenError, NotFoundError) as error:
        logger.warning("the cluster does not say which Kubernetes it is: %s", error)
        return
    if found is not None and found < OLDEST_KUBERNETES:
        raise UnsupportedClusterError(
            f"the cluster is Kubernetes {_dotted(found)}, but this operator needs {_dotted(OLDEST_KUBERNETES)} or "
            "later: before, a Job counts as failed while pods of it still run"
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
