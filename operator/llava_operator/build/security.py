"""What pods of runs may do on their node: nothing but run, as one who is nobody there."""

from llava_operator.kube.objects import Object

UID = 65532


def build_pod_security() -> Object:
    """The pod's security context."""
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        # Without it the kubelet walks a checkpoint volume of millions of files before every start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def build_container_security() -> Object:
    """The container's."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
