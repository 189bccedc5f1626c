"""Validation errors in one line for a person."""

from pydantic import ValidationError

from llava_api.text import show

MAX_FAULTS = 5
MAX_TEXT = 1024


def describe_faults(error: ValidationError, prefix: str = "") -> str:
    """The first faults, each with the field's path below ``prefix``."""
    told = (
        f"{'.'.join(filter(None, (prefix, *map(str, fault['loc'])))) or 'the whole'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False)[:MAX_FAULTS]
    )
    return show("; ".join(told), max_chars=MAX_TEXT)
