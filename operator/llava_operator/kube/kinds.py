"""The kinds that the operator reads and writes; together they are its RBAC rules."""

from llava_api.constants import GROUP, LABEL_MANAGED_BY, MANAGER, PLURAL, VERSION
from llava_operator.kube.client import Kind

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
SUBJECT_ACCESS_REVIEWS = Kind("apis/authorization.k8s.io/v1", "subjectaccessreviews")
KINDS = (
    RUNS, JOBS, PODS, CONFIG_MAPS, SERVICES, VOLUME_CLAIMS, NETWORK_POLICIES, SECRETS, NODES, EVENTS, LEASES,
    ENDPOINT_SLICES, TOKEN_REVIEWS, SUBJECT_ACCESS_REVIEWS,
)  # fmt: skip
"""All of them."""

CHILD_SELECTOR = f"{LABEL_MANAGED_BY}={MANAGER}"
"""Selects the Jobs and pods of every run."""
