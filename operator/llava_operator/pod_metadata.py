"""Which labels and annotations an installation may give the pods of runs: a wrong one would have every Job refused."""

import json
import re
from typing import Any

from llava_api.constants import GROUP, LABEL_MANAGED_BY

MAX_ENTRIES = 32
MAX_ANNOTATIONS = 16_384
"""Characters of all annotations together; the API server takes 262144 bytes."""
_NAME = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = f"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}"
_OURS = frozenset({LABEL_MANAGED_BY, "controller-uid", "job-name"})
_OUR_PREFIXES = (f"{GROUP}/", "batch.kubernetes.io/")


def read_json_object(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise ValueError('must be a JSON object of texts, like {"team": "vision"}') from None


def check_key(key: str) -> str:
    """The key, if Kubernetes' labels and annotations may be called so.

    Raises:
        ValueError: they may not.
    """
    if not re.fullmatch(_KEY, key):
        raise ValueError(f"{key!r} must be NAME or DOMAIN/NAME, as Kubernetes' labels and annotations are called")
    return key


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """The labels, if Kubernetes takes them and none is ours or the Job controller's.

    Raises:
        ValueError: one cannot be; the message names it.
    """
    _check_keys(labels)
    for key, value in labels.items():
        if not re.fullmatch(f"({_NAME})?", value):
            raise ValueError(f"{key}: {value!r} must have at most 63 letters, digits, - _ . and end with none of these")
    return labels


def check_annotations(annotations: dict[str, str]) -> dict[str, str]:
    """The annotations, if Kubernetes takes them and none is ours.

    Raises:
        ValueError: one cannot be; the message names it.
    """
    _check_keys(annotations)
    if sum(map(len, annotations.values())) > MAX_ANNOTATIONS:
        raise ValueError(f"must have at most {MAX_ANNOTATIONS} characters together")
    return annotations


def _check_keys(entries: dict[str, str]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"has {len(entries)} entries, but may have {MAX_ENTRIES}")
    for key in map(check_key, entries):
        if key in _OURS or key.startswith(_OUR_PREFIXES):
            raise ValueError(f"{key} is set by the operator or by Kubernetes itself: leave it out")
