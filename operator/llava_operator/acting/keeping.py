"""Takes a run's claim out of its ownership, so that it stays when the run is deleted."""

from llava_api.names import volume_claim_name
from llava_operator.acting.creation import judge_refusal
from llava_operator.kube.client import Kube, KubeError, NotFoundError
from llava_operator.kube.kinds import VOLUME_CLAIMS
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
