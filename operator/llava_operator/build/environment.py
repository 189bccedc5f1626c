"""Environment of a stage's container: where caches go, which GPUs it sees, how processes of different pods talk."""

from collections.abc import Sequence

from llava_api.constants import (
    ANNOTATION_INDEX_FAILURES,
    ENV_DISABLE_XET,
    ENV_INDEX_FAILURES,
    ENV_PICTURE_HOSTS,
    ENV_POD_NAME,
    StageName,
)
from llava_api.spec import Network
from llava_operator.kube.objects import Object
from llava_operator.run import Attempt


def build_environment(attempt: Attempt, *, uses_xet: bool = False, picture_hosts: Sequence[str] = ()) -> list[Object]:
    """Environment of a stage. Everything about the run itself is in the run configuration instead.

    Args:
        attempt: the stage's.
        uses_xet: whether prepare may read hub files by Xet's client. It is not in the run configuration, which an
            older trainer image would not read with a field that it does not know.
        picture_hosts: hosts from which prepare may fetch pictures; not there either, for the same reason.
    """
    variables = {
        # The root file system is read-only, and caches are of no use to anyone later.
        "HOME": "/tmp/home",
        "TMPDIR": "/tmp",
        "TRITON_CACHE_DIR": "/tmp/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    }
    if attempt.num_gpus == 0:
        # Where NVIDIA's runtime is the default and an image asks for all GPUs, a pod without any would see them all.
        variables["NVIDIA_VISIBLE_DEVICES"] = "void"
    if uses_xet and attempt.stage.name is StageName.PREPARE:
        variables[ENV_DISABLE_XET] = "0"
    if picture_hosts and attempt.stage.name is StageName.PREPARE:
        variables[ENV_PICTURE_HOSTS] = ",".join(picture_hosts)
    if attempt.stage.is_gang:
        variables |= _network_variables(attempt.spec.workers.network, has_gpus=attempt.num_gpus > 0)
    pod_name: Object = {"name": ENV_POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    tries: list[Object] = []
    if attempt.stage.is_sharded:
        # Both are the Job controller's, on each pod of such a Job; the value is empty where one is not there.
        tries = [
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}}
            for name, annotation in zip(ENV_INDEX_FAILURES, ANNOTATION_INDEX_FAILURES, strict=True)
        ]
    return [pod_name, *tries, *({"name": name, "value": value} for name, value in variables.items())]


def _network_variables(network: Network, *, has_gpus: bool) -> dict[str, str]:
    """NCCL's and gloo's. Gloo knows no pattern: ``=`` is what it does anyway, ``^`` it cannot do."""
    made: dict[str, str | None] = {}
    if network.interface is not None and not network.interface.startswith("^"):
        made["GLOO_SOCKET_IFNAME"] = network.interface.removeprefix("=")
    if has_gpus:
        made |= {
            "NCCL_SOCKET_IFNAME": network.interface,
            "NCCL_IB_HCA": network.hca,
            "NCCL_DEBUG": network.debug,
        }
    return {name: value for name, value in made.items() if value is not None}
