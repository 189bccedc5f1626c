"""From pydantic types to a structural OpenAPI v3 schema, the form that a CustomResourceDefinition takes.

The two differ in a few ways that are translated here: references are inlined, ``X | None`` becomes ``nullable``,
exclusive bounds are booleans beside the bound, ``const`` is an enum of one, and an object's default holds only what
its properties' own defaults do not say already (the API server fills those in). What is described elsewhere refers to
there: kubectl keeps the CRD in an annotation of it, which has room for 256 KiB.
"""

from typing import Any

from pydantic import BaseModel

from llava_api.rules import RULES_KEY

Schema = dict[str, Any]

DESCRIBED_AS = "x-described-as"
"""Mark of an object whose fields are described at another path, where the same type stands."""
_DROPPED = (DESCRIBED_AS, "title", "additionalProperties", "propertyNames", "const", "anyOf", "$ref", "$defs")


def build_schema(model: type[BaseModel]) -> Schema:
    """Structural schema of ``model``, properties named as on the wire."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _translate(raw, raw.get("$defs", {}))


def _translate(raw: Schema, definitions: dict[str, Schema]) -> Schema:
    flat, nullable = _flatten(raw, definitions)
    schema = {key: value for key, value in flat.items() if key not in _DROPPED}
    if "const" in flat:
        schema["enum"] = [flat["const"]]
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in schema:
            schema[bound], schema[exclusive] = schema[exclusive], True
    if schema.get("type") == "integer":
        schema.setdefault("format", "int64")
    if "properties" in flat:
        schema["properties"] = {name: _translate(value, definitions) for name, value in flat["properties"].items()}
    if isinstance(flat.get("additionalProperties"), dict):
        schema["additionalProperties"] = _translate(flat["additionalProperties"], definitions)
    if "items" in flat:
        schema["items"] = _translate(flat["items"], definitions)
    if DESCRIBED_AS in flat:
        _refer(schema, flat[DESCRIBED_AS])
    if nullable:
        schema["nullable"] = True
    if "default" in schema:
        schema["default"] = _own_default(schema["default"], schema)
        if schema["default"] is None:
            del schema["default"]
    return schema


def _refer(schema: Schema, path: str) -> None:
    for name, child in schema.get("properties", {}).items():
        child["description"] = f"As {path}.{name}."
        _refer(child, f"{path}.{name}")


def _flatten(raw: Schema, definitions: dict[str, Schema]) -> tuple[Schema, bool]:
    """Merge a schema with what it refers to; what stands nearer to the field wins, rules add up."""
    layers = [raw]
    nullable = False
    while True:
        innermost = layers[-1]
        if "$ref" in innermost:
            layers.append(definitions[innermost["$ref"].removeprefix("#/$defs/")])
        elif "anyOf" in innermost:
            options = [option for option in innermost["anyOf"] if option.get("type") != "null"]
            nullable = nullable or len(options) < len(innermost["anyOf"])
            if len(options) != 1:
                raise ValueError(f"a union of {len(options)} types has no structural schema: {innermost}")
            layers.append(options[0])
        else:
            break
    flat: Schema = {}
    found_rules: list[Any] = []
    for layer in reversed(layers):
        found_rules += layer.get(RULES_KEY, [])
        flat |= layer
    if found_rules:
        flat[RULES_KEY] = found_rules
    return flat, nullable


def _own_default(default: Any, schema: Schema) -> Any:
    """What of an object's default its properties do not fill in by themselves."""
    if not isinstance(default, dict) or "properties" not in schema:
        return default
    properties = schema["properties"]
    own = {}
    for name, value in default.items():
        value = _own_default(value, properties[name])
        if value is not None and value != properties[name].get("default"):
            own[name] = value
    return own
