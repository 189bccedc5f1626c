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


def fixed(*fields: str) -> tuple[JsonDict, ...]:
    """Transition rules: none of ``fields`` changes after creation.

    They look at old and new spec only. A rule that read the phase would miss an edit made before the first status
    write, and one rule for the whole spec could not name the field.
    """
    return tuple(
        rule(
            f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
            f"spec.{name} is fixed from creation: delete this LlavaFineTune or create another one with the new value",
            field=f".{name}",
        )
        for name in fields
    )
