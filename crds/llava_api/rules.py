"""CEL rules and schema marks that pydantic has no word for; the CRD generator passes them through.

A rule's message names the field and the fix, since it is all that a person sees at ``kubectl apply``.
"""

from typing import Any

from pydantic.config import JsonDict

RULES_KEY = "x-kubernetes-validations"


def rule(expression: str, message: str, *, field: str | None = None, message_expression: str | None = None) -> JsonDict:
    """One CEL rule.

    Args:
        expression: CEL that must be true; ``self`` is the value it is attached to.
        message: shown when it is not; also the fallback of ``message_expression``.
        field: path of the field to blame, relative to the value (``.storage.accessModes``).
        message_expression: CEL that makes a message with the values in it.
    """
    made: JsonDict = {"rule": expression, "message": message}
    if message_expression:
        made["messageExpression"] = message_expression
    if field:
        made["fieldPath"] = field
    return made


def rules(*made: JsonDict) -> dict[str, Any]:
    """Schema extra that carries ``made``."""
    return {RULES_KEY: list(made)}


def fixed(*paths: str) -> tuple[JsonDict, ...]:
    """Transition rules: none of the fields at ``paths`` (like workers.shmSize) changes after creation.

    They look at old and new spec only. A rule that read the phase would miss an edit made before the first status
    write, and one rule for the whole spec could not name the field.
    """
    return tuple(
        rule(
            unchanged(path),
            f"spec.{path} is fixed from creation: delete this LlavaFineTune or create another one with the new value",
            field=f".{path}",
        )
        for path in paths
    )


def fixed_unless_suspended(*paths: str) -> tuple[JsonDict, ...]:
    """Transition rules: the fields at ``paths`` change only while ``suspend`` is true."""
    return tuple(
        rule(
            f"oldSelf.suspend || ({unchanged(path)})",
            f"spec.{path} can only change while the run is suspended: set spec.suspend to true first, and to false "
            "again with the change or after it",
            field=f".{path}",
        )
        for path in paths
    )


def fixed_presence(path: str) -> JsonDict:
    """Transition rule: an optional part of the spec, of which some fields may change, neither comes nor goes."""
    return rule(
        f"has(self.{path}) == has(oldSelf.{path})",
        f"spec.{path} neither comes nor goes after creation: delete this LlavaFineTune or create another one",
        field=f".{path}",
    )


def unchanged(path: str) -> str:
    """CEL: the field is what it was; one whose parent is missing, before or after, is the parent's matter."""
    parents = path.split(".")[:-1]
    missing = [
        f"!has({side}.{'.'.join(parents[:depth])})"
        for depth in range(1, len(parents) + 1)
        for side in ("self", "oldSelf")
    ]
    same = f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || self.{path} == oldSelf.{path})"
    return " || ".join([*missing, f"({same})" if missing else same])
