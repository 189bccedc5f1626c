"""The certificate authority of the reporting endpoint: handed out to the pods of a run by a ConfigMap."""

from dataclasses import dataclass

from llava_operator.acting.creation import create_child, find_or_create_child
from llava_operator.build.config import build_report_ca
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import CONFIG_MAPS
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
    make = create_child if is_new else find_or_create_child
    found = await make(kube, run, CONFIG_MAPS, body)
    if found.get("data") != body["data"]:
        await kube.patch(CONFIG_MAPS, run.key.namespace, name, {"data": body["data"]})
