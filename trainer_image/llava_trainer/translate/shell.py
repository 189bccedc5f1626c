"""Shell text into commands: words, quotes, variables and operators of a shell, as far as launch scripts go.

A word in angle brackets, as instructions have it (``<your data>``), counts as a variable without value. Variables are
those that the text assigns and those given beforehand, never the environment's: the text belongs to another machine.
Nothing is run: ``$(…)`` stays as it is written.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llava_trainer.translate.errors import TranslateError

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:\[[@*]\])?(?::?[-=]([^}]*))?\})")
_UNRESOLVED = re.compile(r"\$\{?(\w+)")
_PARAMETER = re.compile(r"\$\{?((?<=\{)[^}\n]+(?=\})|(?<!\{)\w+)\}?")
_ARRAY = re.compile(r'"\$\{(\w+)\[[@*]\]\}"')
_APOSTROPHE = re.compile(r"(?<=[A-Za-z])'(?=(?:s|t|re|ve|ll|d|m)\b)")
"""Of a sentence between commands, not the beginning of a quotation."""
_OPERATOR = re.compile(r"\n|&&|\|\||;;?|\||&(?!>)|[()]")
_PLACEHOLDER = re.compile(r"<([A-Za-z][\w ./-]*)>")
_REDIRECTION = re.compile(r"\d*(?:>>|>\||>&|<&|<<<|<|>)|&>>?")
_KEYWORDS = frozenset({"if", "then", "else", "elif", "fi", "do", "done", "while", "until", "time", "exec", "nohup",
                       "sudo", "!", "{", "}", "env", "export", "declare", "local", "set"})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Command:
    """One simple command."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Assignments in front of it, and variables assigned before."""
    line: int
    """Where it begins, counted from 1."""


@dataclass(frozen=True)
class _Word:
    text: str
    quoted: bool
    line: int


class Variables:
    """What the text has assigned so far. An array's elements are words of their own."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = dict(given)
        self._values: dict[str, str] = dict(given)

    def assign(self, name: str, value: str) -> None:
        """Set a variable; one that was given beforehand keeps that value."""
        if name not in self._given:
            self._values[name] = value

    def expand(self, text: str) -> str:
        """``text`` with every known variable replaced; an unknown one stays as it is written, or takes its default."""

        def replace(match: re.Match[str]) -> str:
            name, default = match[1] or match[2], match[3]
            if name in self._values:
                return self._values[name]
            return f"${name}" if default is None else self.expand(default)

        return _VARIABLE.sub(replace, text)

    def snapshot(self) -> dict[str, str]:
        """All of them now."""
        return dict(self._values)


def unresolved(text: str) -> tuple[str, ...]:
    """Names of the variables that are still in ``text``."""
    return tuple(dict.fromkeys(_UNRESOLVED.findall(text)))


def read_commands(text: str, first_line: int, variables: Variables) -> list[Command]:
    """Commands of ``text``, in order; assignments of its own go into ``variables``.

    Args:
        text: one or more lines; a backslash at a line's end continues it.
        first_line: number of the first line, for messages.
        variables: what is known; changed.

    Raises:
        TranslateError: a quote that is never closed.
    """
    commands = []
    for words in _split_at_operators(_scan(text, first_line, variables)):
        command = _make_command(words, variables)
        if command:
            commands.append(command)
    return commands


def _make_command(words: Sequence[_Word], variables: Variables) -> Command | None:
    words = list(words)
    own: dict[str, str] = {}
    while words:
        first = words[0]
        assigned = None if first.quoted else _ASSIGNMENT.fullmatch(first.text)
        if assigned:
            own[assigned[1]] = assigned[2]
        elif first.text not in _KEYWORDS:
            break
        words.pop(0)
    if not words:
        for name, value in own.items():
            variables.assign(name, value)
        return None
    return Command(words=tuple(w.text for w in words), environment=variables.snapshot() | own, line=words[0].line)


def _split_at_operators(words: Iterable[_Word | None]) -> Iterable[list[_Word]]:
    command: list[_Word] = []
    for word in words:
        if word is not None:
            command.append(word)
        elif command:
            yield command
            command = []
    if command:
        yield command


def _scan(text: str, line: int, variables: Variables) -> Iterable[_Word | None]:
    """Words, expanded; None for what separates commands. Redirections are left out."""
    position, skip_next = 0, False
    while position < len(text):
        rest = text[position:]
        if rest.startswith("\\\n"):
            position, line = position + 2, line + 1
        elif rest[0] in " \t\r":
            position += 1
        elif rest[0] == "#":
            position += len(rest.split("\n", 1)[0])
        elif (redirection := _REDIRECTION.match(rest)) and not _PLACEHOLDER.match(rest):
            position += redirection.end()
            skip_next = True
        elif array := re.match(r"([A-Za-z_]\w*)=\(", rest):
            end = _closing(text, position + array.end(), line)
            inner = _scan(text[position + array.end() : end], line, variables)
            variables.assign(array[1], " ".join(word.text for word in inner if word))
            line += text.count("\n", position, end)
            position = end + 1
        elif operator := _OPERATOR.match(rest):
            position += operator.end()
            line += operator[0] == "\n"
            yield None
        else:
            read = _scan_word(text, position, line, variables)
            if not skip_next:
                yield from read.words
            skip_next = False
            line += text.count("\n", position, read.end)
            position = read.end


@dataclass(frozen=True)
class _Read:
    words: tuple[_Word, ...]
    end: int


def _scan_word(text: str, begin: int, line: int, variables: Variables) -> _Read:
    """One word from ``begin``; several where an unquoted variable holds spaces."""
    pieces, position, quoted = [], begin, False
    parts: list[str] = []
    is_assignment = bool(re.match(r"[A-Za-z_]\w*=", text[begin:]))
    while position < len(text):
        char = text[position]
        if placeholder := _PLACEHOLDER.match(text, position):
            parts.append(variables.expand("$" + re.sub(r"\W+", "_", placeholder[1])))
            position = placeholder.end()
        elif match := _ARRAY.match(text, position) or _PARAMETER.match(text, position):
            expanded = variables.expand("${" + match[1] + "}")
            head, *others = [expanded] if is_assignment else expanded.split() or [""]
            parts.append(head)
            for other in others:
                pieces.append("".join(parts))
                parts = [other]
            position = match.end()
        elif _APOSTROPHE.match(text, position):
            parts.append(char)
            position += 1
        elif char in "'\"":
            end = _closing_quote(text, position, line + text.count("\n", begin, position))
            inner = text[position + 1 : end]
            parts.append(inner if char == "'" else variables.expand(_unescape(inner)))
            quoted, position = True, end + 1
        elif char == "\\" and position + 1 < len(text):
            parts.append("" if text[position + 1] == "\n" else text[position + 1])
            position += 2
        elif text.startswith("$(", position):
            end = _closing(text, position + 2, line)
            parts.append(text[position : end + 1])
            position = end + 1
        elif char in " \t\r\n;&|()<>":
            break
        else:
            parts.append(char)
            position += 1
    pieces.append("".join(parts))
    words = tuple(_Word(piece, quoted and not is_assignment, line) for piece in pieces if piece or quoted)
    return _Read(words, max(position, begin + 1))


def _unescape(inner: str) -> str:
    return re.sub(r'\\(["\\`])', r"\1", inner.replace("\\\n", ""))


def _closing_quote(text: str, opening: int, line: int) -> int:
    quote, position = text[opening], opening + 1
    while position < len(text):
        if text[position] == "\\" and quote == '"':
            position += 1
        elif text[position] == quote:
            return position
        position += 1
    raise TranslateError(f"line {line}: the quote {quote} that begins at {_excerpt(text, opening)} is never closed")


def _closing(text: str, position: int, line: int) -> int:
    """Where the parenthesis that was opened before ``position`` closes."""
    depth, begin = 1, position
    while position < len(text):
        char = text[position]
        if char in "'\"":
            position = _closing_quote(text, position, line)
        elif char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    raise TranslateError(f"line {line}: the parenthesis before {_excerpt(text, begin)} is never closed")


def _excerpt(text: str, position: int) -> str:
    return repr(text[position : position + 30].split("\n", 1)[0])
