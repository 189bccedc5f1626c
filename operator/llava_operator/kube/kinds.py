"""The kinds that the operator reads and writes; together they are its RBAC rules."""

from dataclasses import dataclass
from urllib.parse import quote

from llava_api.constants import GROUP, LABEL_MANAGED_BY, MANAGER, PLURAL, VERSION


@dataclass(frozen=True)
class Kind:
    """A kind of objects: where it is served."""

    api: str
    """``api/v1`` or ``apis/GROUP/VERSION``."""
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """Path of one object, of a namespace's collection, or of the whole cluster's.

        Raises:
            ValueError: namespace or name would lead to another path: an empty name to the whole collection.
        """
        scope = ["namespaces", _segment(namespace)] if namespace is not None else []
        one = [_segment(name)] if name is not None else []
        return "/" + "/".join(filter(None, [self.api, *scope, self.plural, *one, subresource]))


def _segment(name: str) -> str:
    if name in ("", ".", ".."):
        raise ValueError(f"{name!r} is no name of an object or of a namespace")
    return quote(name, safe="")


RUNS = Kind(f"apis/{GROUP}/{VERSION}", PLURAL)
JOBS = Kind("apis/batch/v1", "jobs")
PODS = Kind("api/v1", "pods")
CONFIG_MAPS = Kind("api/v1", "configmaps")
SERVICES = Kind("api/v1", "services")
VOLUME_CLAIMS = Kind("api/v1", "persistentvolumeclaims")
NETWORK_POLICIES = Kind("apis/networking.k8s.io/v1", "networkpolicies")
SECRETS = Kind("api/v1", "secrets")
NODES = Kind("api/v1", "nodes")
EVENTS = Kind("apis/events.k8s.io/v1", "events")
LEASES = Kind("apis/coordination.k8s.io/v1", "leases")
ENDPOINT_SLICES = Kind("apis/discovery.k8s.io/v1", "endpointslices")
TOKEN_REVIEWS = Kind("apis/authentication.k8s.io/v1", "tokenreviews")

CHILD_SELECTOR = f"{LABEL_MANAGED_BY}={MANAGER}"
"""Selects the Jobs and pods of every run."""
