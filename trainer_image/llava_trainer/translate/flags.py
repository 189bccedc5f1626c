"""The words after train.py into values, as transformers' HfArgumentParser reads them."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llava_trainer.translate.errors import OptionMissingError, TranslateError
from llava_trainer.translate.known import FLAGS, SECRET_FLAGS, Flag
from llava_trainer.translate.shell import unresolved

Value = str | int | float | bool | None

_TRUE = frozenset({"yes", "true", "t", "y", "1"})
_FALSE = frozenset({"no", "false", "f", "n", "0"})


@dataclass(frozen=True, kw_only=True)
class UnknownFlag:
    """A flag that train.py does not know; it would have refused to begin."""

    written: str
    nearest: str | None


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What a training command asks for."""

    given: Mapping[str, Value]
    written: Mapping[str, str]
    """Of each flag that is given, how."""
    unknown: tuple[UnknownFlag, ...]
    stray: tuple[str, ...]
    """Words that belong to no flag."""
    repeated: tuple[str, ...]
    """Flags that are given more than once; the last one counts."""
    line: int

    def has(self, name: str) -> bool:
        """Whether a flag is given."""
        return name in self.given

    def text(self, name: str) -> str | None:
        """Value of a flag of kind ``str``, or what train.py takes."""
        value = self._value(name)
        return None if value is None else str(value)

    def number(self, name: str) -> float:
        """Value of a number, or what train.py takes."""
        value = self._value(name)
        assert isinstance(value, int | float), name
        return value

    def whole(self, name: str) -> int:
        """Value of a whole number, or what train.py takes."""
        return int(self.number(name))

    def is_on(self, name: str) -> bool:
        """Value of a switch, or what train.py takes."""
        return self._value(name) is True

    def _value(self, name: str) -> Value:
        return self.given.get(name, FLAGS[name].default)


def read_flags(words: Sequence[str], line: int) -> Flags:
    """Read what follows the script.

    Args:
        words: of the command, variables replaced.
        line: where the command begins, for messages.

    Raises:
        OptionMissingError: a number or a switch is a variable without value; names ``--set``.
        TranslateError: a value that is no number or no truth value, or a flag without its value.
    """
    given: dict[str, Value] = {}
    written: dict[str, str] = {}
    unknown: list[UnknownFlag] = []
    stray: list[str] = []
    repeated: list[str] = []
    for word, value in _pair(words):
        if not word.startswith("--"):
            stray.append(word)
            continue
        shown = word if value is None else f"{word} {value}"
        found = _find(_plain_name(word))
        if found is None:
            unknown.append(UnknownFlag(written=shown, nearest=_nearest(_plain_name(word))))
            continue
        if found.name in given:
            repeated.append(found.name)
        given[found.name] = False if found.negated else _read_value(found.name, value, line)
        written[found.name] = f"{word} …" if found.name in SECRET_FLAGS else shown
    return Flags(
        given=given, written=written, unknown=tuple(unknown), stray=tuple(stray),
        repeated=tuple(dict.fromkeys(repeated)), line=line,
    )  # fmt: skip


def _pair(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Flags with their values, which follow ``=`` or as the next word; words that belong to no flag by themselves."""
    position = 0
    while position < len(words):
        word, equals, value = (
            words[position].partition("=") if words[position].startswith("--") else (words[position], "", "")
        )
        position += 1
        has_next = position < len(words) and not words[position].startswith("--")
        if word.startswith("--") and not equals and has_next:
            yield word, words[position]
            position += 1
        else:
            yield word, value if equals else None


def _plain_name(word: str) -> str:
    return word[2:].replace("-", "_")


@dataclass(frozen=True)
class _Found:
    name: str
    negated: bool = False


def _find(name: str) -> _Found | None:
    """A flag by its name, by ``no_`` in front of a switch, or by the beginning of its name where only one has it."""
    if name in FLAGS:
        return _Found(name)
    positive = name.removeprefix("no_")
    if positive != name and positive in FLAGS and FLAGS[positive].default is True:
        return _Found(positive, negated=True)
    beginning = [known for known in FLAGS if known.startswith(name)] if len(name) > 2 else []
    return _Found(beginning[0]) if len(beginning) == 1 else None


def _nearest(name: str) -> str | None:
    beginning = [known for known in FLAGS if known.startswith(name)]
    return next(iter(beginning or difflib.get_close_matches(name, FLAGS, n=1, cutoff=0.6)), None)


def _read_value(name: str, value: str | None, line: int) -> Value:
    flag = FLAGS[name]
    if value is None:
        if flag.kind == "bool":
            return True
        raise TranslateError(f"line {line}: --{name} has no value: write one behind it, or leave the flag out")
    if flag.kind != "str" and (names := unresolved(value)):
        raise OptionMissingError(
            f"line {line}: --{name} {value}: the text gives {names[0]} no value: say it with --set {names[0]}=VALUE"
        )
    return _convert(name, flag, value, line)


def _convert(name: str, flag: Flag, value: str, line: int) -> Value:
    try:
        if flag.kind == "int":
            return int(value)
        if flag.kind == "float":
            return float(value)
    except ValueError:
        what = "a whole number" if flag.kind == "int" else "a number"
        raise TranslateError(f"line {line}: --{name} {value}: must be {what}") from None
    if flag.kind == "str":
        return value
    if value.lower() in _TRUE or value.lower() in _FALSE:
        return value.lower() in _TRUE
    raise TranslateError(f"line {line}: --{name} {value}: must be True or False")
