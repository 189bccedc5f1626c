"""The form in which Kubernetes objects cross the wire. For those who do not talk to the API server themselves."""

from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as JSON."""
