"""The certificate authority of the reporting endpoint: handed out to the pods of a run by a ConfigMap."""

from dataclasses import dataclass

from llava_api.failures import Reason
from llava_operator.acting.creation import ObstacleError, create_child, is_controlled_by
from llava_operator.build.config import build_report_ca
from llava_operator.deciding.observation import ObstacleKind
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import NotFoundError
from llava_operator.kube.kinds import CONFIG_MAPS
from llava_operator.kube.objects import Object
from llava_operator.run import Run


@dataclass(kw_only=True)
class Authority:
    """Filled in when the endpoint is up; runs begin also without it, and get it later."""

    certificate: str | None = None
    """PEM; None while it is not known."""


async def write_authority(kube: Kube, run: Run, certificate: str, *, is_new: bool) -> None:
    """Have the run's ConfigMap hold the authority.

    Args:
        kube: where it is written.
        run: whose pods mount it.
        certificate: PEM.
        is_new: whether nothing has been made for the run yet. Else it is asked for first: a restart writes nothing.

    Raises:
        ObstacleError: its name belongs to someone else, or the API server does not want it.
        KubeError: the API server could not be asked.
    """
    body = build_report_ca(run, certificate)
    name = body["metadata"]["name"]
    found = await _create(kube, run, body) if is_new else await _find_or_create(kube, run, body)
    if not is_controlled_by(found["metadata"], run.uid):
        raise ObstacleError(
            ObstacleKind.NAME_CONFLICT, Reason.NAME_CONFLICT, f"configmaps {name} does not belong to this run"
        )
    if found.get("data") != body["data"]:
        await kube.patch(CONFIG_MAPS, run.key.namespace, name, {"data": body["data"]})


async def _find_or_create(kube: Kube, run: Run, body: Object) -> Object:
    try:
        return await kube.get(CONFIG_MAPS, run.key.namespace, body["metadata"]["name"])
    except NotFoundError:
        return await _create(kube, run, body)


async def _create(kube: Kube, run: Run, body: Object) -> Object:
    return await create_child(kube, run, CONFIG_MAPS, body)
