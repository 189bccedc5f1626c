"""What a violation is, and how the names and addresses in one are judged and shown. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llava_api.addresses import ANYTHING, matches
from llava_operator.deciding.policy import Policy

NAME = "^[a-z0-9.-]*$"
SHOWABLE = "^[!-~]+$"
SHOWABLE_ADDRESS = "^[!-?A-~]+$"
"""Without @, before which a password may stand."""
HIDDEN = "a value that is not shown"


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One thing that a run asks for and the installation does not allow."""

    field: str
    value: str
    rule: str
    fix: str

    @property
    def message(self) -> str:
        """Field, value, rule and fix in one line."""
        return f"{self.field} is {self.value}, but this installation {self.rule}: {self.fix}"


def describe_violations(violations: Sequence[Violation]) -> str:
    """All of them, for a person."""
    return "; ".join(violation.message for violation in violations)


def judge_secret(field: str, name: str, policy: Policy) -> Iterator[Violation]:
    """Whether a run may name this Secret."""
    return judge_name(field, name, "Secrets", policy.secret_names, "policy.secretNames")


def judge_name(field: str, name: str, kind: str, allowed: Sequence[str], setting: str) -> Iterator[Violation]:
    """Whether a run may name this object.

    Args:
        field: that names it.
        name: as it stands there.
        kind: of the object, in the plural.
        allowed: names, in which a ``*`` stands for any part.
        setting: of the installation that lists them.
    """
    if ANYTHING in allowed or any(_is_named(name, one) for one in allowed):
        return
    rule = f"allows only {kind} named {', '.join(allowed)}" if allowed else f"allows no {kind}"
    yield Violation(field=field, value=show_value(name), rule=f"{rule} ({setting})", fix="name an allowed one, or none")


def _is_named(name: str, pattern: str) -> bool:
    """Whether a name matches a pattern in which ``*`` stands for any part.

    No regular expression: with many stars Python's would take for ever, which CEL's does not.
    """
    first, *middle = pattern.split("*")
    if not middle:
        return name == pattern
    *middle, last = middle
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    position, end = len(first), len(name) - len(last)
    for part in middle:
        position = name.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return matches(NAME, name)


def show_value(value: str, pattern: str = SHOWABLE) -> str:
    """A text of the run, if it is fit for a message."""
    return value if matches(pattern, value) else HIDDEN
