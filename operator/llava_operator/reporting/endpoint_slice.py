"""What makes the endpoint reachable: the EndpointSlice that leads its Service to the pod that leads."""

from llava_operator.kube.client import Kube
from llava_operator.kube.errors import AlreadyExistsError
from llava_operator.kube.kinds import ENDPOINT_SLICES, SERVICES
from llava_operator.kube.objects import Object
from llava_operator.settings import Settings

PORT_NAME = "report"


async def ensure_endpoint(kube: Kube, settings: Settings) -> None:
    """Have the Service lead to this pod, and to no other.

    Raises:
        NotFoundError: the installer has made no Service.
        KubeError: it could not be read or written.
    """
    service = await kube.get(SERVICES, settings.namespace, settings.report_service)
    body = build_endpoint_slice(settings, service["metadata"]["uid"])
    try:
        await kube.create(ENDPOINT_SLICES, settings.namespace, body)
    except AlreadyExistsError:
        await kube.patch(ENDPOINT_SLICES, settings.namespace, settings.report_service, body)


def build_endpoint_slice(settings: Settings, service_uid: str) -> Object:
    """The EndpointSlice that names this pod. It goes when the Service goes."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": settings.report_service,
            "namespace": settings.namespace,
            "labels": {
                "kubernetes.io/service-name": settings.report_service,
                "endpointslice.kubernetes.io/managed-by": settings.name,
            },
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Service", "name": settings.report_service, "uid": service_uid}
            ],
        },
        "addressType": "IPv6" if ":" in settings.pod_ip else "IPv4",
        "endpoints": [{"addresses": [settings.pod_ip], "conditions": {"ready": True}}],
        "ports": [{"name": PORT_NAME, "port": settings.report_port, "protocol": "TCP"}],
    }
