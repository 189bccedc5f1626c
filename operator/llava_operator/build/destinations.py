"""Claims that a run publishes to, mounted to be written in the pod that publishes, and in no other. Pure."""

from llava_api.constants import DESTINATIONS_PATH
from llava_operator.build.inputs import parse_source
from llava_operator.kube.objects import Object
from llava_operator.run import Attempt

RUN_VOLUME = "run"
"""Name of the pod's volume that is the run's own claim."""


def build_destination_volumes(attempt: Attempt) -> list[Object]:
    """Volumes of destinations that are on claims, but for the run's own, which the pod has already."""
    return [
        {"name": name, "persistentVolumeClaim": {"claimName": claim}}
        for claim, name in _name_claims(attempt).items()
        if name != RUN_VOLUME
    ]


def build_destination_mounts(attempt: Attempt) -> list[Object]:
    """Where the container finds them."""
    return [
        {"name": name, "mountPath": f"{DESTINATIONS_PATH}/{claim}"} for claim, name in _name_claims(attempt).items()
    ]


def _name_claims(attempt: Attempt) -> dict[str, str]:
    """Name of the pod's volume by claim. No claim is two volumes: the kubelet may wait for the second one for ever."""
    publish = attempt.spec.publish
    if not attempt.stage.publishes or publish is None:
        return {}
    found = (parse_source(one.address) for one in publish.destinations)
    claims = dict.fromkeys(place.claim for place in found if place is not None)
    own = attempt.spec.storage.claim_for(attempt.run.key.name)
    return {claim: RUN_VOLUME if claim == own else f"destination-{index}" for index, claim in enumerate(claims)}
