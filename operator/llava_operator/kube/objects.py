"""The form in which Kubernetes objects cross the wire. For those who do not talk to the API server themselves."""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Namespace and name of an object; of a run, where nothing else is said."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
