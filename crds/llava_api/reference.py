"""docs/api.md, made from the same schema as the CRD."""

import json
from collections.abc import Iterator
from typing import Any

from llava_api.constants import API_VERSION, KIND
from llava_api.resource import LlavaFineTune
from llava_api.rules import RULES_KEY
from llava_api.schema import Schema, build_schema
from llava_api.spec.training import AUTO_PATTERN

_GUARD = 2**40
"""Bounds from here on keep nonsense out, and tell nobody anything."""
_MANY_RULES = 3
"""A field with so many is written out once; the others that have the same refer to it."""
_HEAD = f"""# API reference

`{API_VERSION}`, kind `{KIND}`. Made from the types in `crds/llava_api` by `make generate`; the same texts are shown by
`kubectl explain lft.spec`. What `status.failure.reason` may say is in [failures.md](failures.md).
"""


def build_reference() -> str:
    """The whole page as Markdown."""
    properties = build_schema(LlavaFineTune)["properties"]
    parts = [_HEAD]
    for name in ("spec", "status"):
        parts.append(f"## {name}\n\n{properties[name].get('description', '')}\n\n{_table(properties[name], name)}")
    return "\n".join(parts)


def _table(schema: Schema, path: str) -> str:
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| `{name}` | {kind} | {default} | {text} |" for name, kind, default, text in _rows(schema, path, {})]
    return "\n".join(rows) + "\n"


def _rows(schema: Schema, path: str, said: dict[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """One row a field; ``said`` holds longer rules with the field that they were first written out at."""
    required = schema.get("required", [])
    for name, child in schema.get("properties", {}).items():
        child_path = f"{path}.{name}"
        item = child.get("items", {})
        default = "required" if name in required else _default(child)
        text = " ".join([child.get("description", ""), *_bounds(child), _messages(child, child_path, said)]).strip()
        yield child_path, _type(child), default, text.replace("|", "\\|")
        yield from _rows(child, child_path, said)
        yield from _rows(item, f"{child_path}[]", said)


def _type(schema: Schema) -> str:
    if schema.get("pattern") == AUTO_PATTERN:
        return "integer \\| `auto`"
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map of {_type(schema['additionalProperties'])}"
    return str(schema.get("type", ""))


def _default(schema: Schema) -> str:
    default: Any = schema.get("default")
    if default is None or default in ({}, [], ""):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{json.dumps(default)}`" if isinstance(default, dict) else f"`{default}`"


def _bounds(schema: Schema) -> Iterator[str]:
    """Bounds of numbers; those of strings and lists are generous and would only be noise."""
    if schema.get("type") not in ("integer", "number") and schema.get("pattern") != AUTO_PATTERN:
        return
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None:
        yield f"{'More than' if schema.get('exclusiveMinimum') else 'At least'} {low}."
    if high is not None and high < _GUARD:
        yield f"{'Less than' if schema.get('exclusiveMaximum') else 'At most'} {high}."


def _messages(schema: Schema, path: str, said: dict[str, str]) -> str:
    messages = [found["message"] for found in schema.get(RULES_KEY, [])]
    text = " ".join(_sentence(message, schema) for message in messages)
    if len(messages) < _MANY_RULES:
        return text
    first = said.setdefault(text, path)
    return text if first == path else f"Written as `{first}`."


def _sentence(message: str, schema: Schema) -> str:
    first, _, rest = message.partition(" ")
    begin = f"`{first}`" if first in schema.get("properties", {}) else f"{first[:1].upper()}{first[1:]}"
    return f"{begin} {rest}."
