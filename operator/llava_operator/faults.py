"""Validation errors in one line for a person."""

from pydantic import ValidationError

MAX_FAULTS = 5


def describe_faults(error: ValidationError, prefix: str = "") -> str:
    """The first faults, each with the field's path below ``prefix``."""
    return "; ".join(
        f"{'.'.join(filter(None, (prefix, *map(str, fault['loc'])))) or 'the whole'}: {fault['msg']}"
        for fault in error.errors()[:MAX_FAULTS]
    )
