"""What becomes of a run that has ended: its claim is made to outlive it, and it is deleted."""

from llava_api.names import volume_claim_name
from llava_operator.acting.creation import judge_refusal
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import ConflictError, KubeError, NotFoundError
from llava_operator.kube.kinds import RUNS, VOLUME_CLAIMS
from llava_operator.run import Run


async def keep_volume(kube: Kube, run: Run) -> None:
    """Have the run's own claim outlive it. Once done, or where there is no such claim, it changes nothing.

    Raises:
        ObstacleError: the API server does not want it.
        KubeError: the API server could not be asked, or somebody else has changed the claim in the same moment.
    """
    namespace, name = run.key.namespace, volume_claim_name(run.key.name)
    try:
        meta = (await kube.get(VOLUME_CLAIMS, namespace, name))["metadata"]
        owners = meta.get("ownerReferences", [])
        others = [owner for owner in owners if owner["uid"] != run.uid]
        if others != owners:
            version = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
            await kube.patch(VOLUME_CLAIMS, namespace, name, {"metadata": {**version, "ownerReferences": others}})
    except NotFoundError:
        return
    except KubeError as error:
        raise judge_refusal(error) from error


async def delete_run(kube: Kube, run: Run) -> None:
    """Delete a run as it was read, whose volume is to stay: whatever has come over the claim, it has no owner then.

    Raises:
        ObstacleError: the API server does not want it.
        KubeError: the API server could not be asked.
        ConflictError: the run has changed since it was read.
    """
    await keep_volume(kube, run)
    try:
        await kube.delete(RUNS, run.key.namespace, run.key.name, run.uid, version=run.resource_version)
    except NotFoundError:
        return
    except ConflictError:
        raise
    except KubeError as error:
        raise judge_refusal(error) from error
