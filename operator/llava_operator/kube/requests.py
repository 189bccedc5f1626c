"""What a request to the API server is, in the words of RBAC: read from its method and path, whoever sends it.

Each word is one of a known set, since they become labels of metrics: what is not known is ``other``.
"""

from dataclasses import dataclass

from llava_operator.kube.kinds import KINDS

NO_ANSWER = 0
"""In place of the status code of an answer that did not come."""
OTHER = "other"
"""Resource of a request for none that the operator works with: discovery, the version."""
_RESOURCES = frozenset(kind.plural for kind in KINDS)
_SUBRESOURCES = frozenset({"status"})
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A request, and what came of it."""

    method: str
    path: str
    code: int
    """Status code of the answer; ``NO_ANSWER`` where none came in full."""
    seconds: float
    """Until then."""
    is_watch: bool = False
    """Whether the answer goes on, and only its head was waited for."""


def read_request(request: Answered) -> tuple[str, str]:
    """Verb (get, list, watch, create, update, patch, delete) and resource, like jobs or llavafinetunes/status."""
    parts = request.path.strip("/").split("/")
    # /api/VERSION/... or /apis/GROUP/VERSION/...
    of_group = parts[{"api": 2, "apis": 3}.get(parts[0], len(parts)) :]
    in_scope = of_group[2:] if of_group[:1] == ["namespaces"] and len(of_group) > 2 else of_group
    plural, name, subresource = [*in_scope[:3], "", "", ""][:3]
    reading = "watch" if request.is_watch else "list" if plural and not name else "get"
    return _VERBS.get(request.method.upper(), reading), _name_resource(plural, subresource)


def _name_resource(plural: str, subresource: str) -> str:
    if plural not in _RESOURCES or (subresource and subresource not in _SUBRESOURCES):
        return OTHER
    return f"{plural}/{subresource}" if subresource else plural
