"""Shell text into commands: words, quotes, variables and operators of a shell, as far as launch scripts go.

A word in angle brackets, as instructions have it (``<your data>``), counts as a variable without value. Variables are
those that the text assigns and those given beforehand, never the environment's: the text belongs to another machine.
Nothing is run: ``$(…)`` stays as it is written.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llava_trainer.translate.errors import TranslateError

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:\[[@*]\])?(?::?[-=]([^}]*))?\})")
_UNRESOLVED = re.compile(r"\$\{?(\w+)")
_PARAMETER = re.compile(r"\$\{?((?<=\{)[^}\n]+(?=\})|(?<!\{)\w+)\}?")
_ARRAY = re.compile(r'"\$\{(\w+)\[[@*]\]\}"')
_APOSTROPHE = re.compile(r"(?<=[A-Za-z])'(?=(?:s|t|re|ve|ll|d|m)\b)")
"""Of a sentence between commands, not the beginning of a quotation."""
_ARRAY_BEGINNING = re.compile(r"([A-Za-z_]\w*)=\(")
_ASSIGNMENT_BEGINNING = re.compile(r"[A-Za-z_]\w*=")
_BLANK = re.compile(r"\\\n|[ \t\r]+|#[^\n]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_SUBSTITUTION = re.compile(r"\$\(")
_WORD_ENDS = frozenset(" \t\r\n;&|()<>")
_PLAIN = re.compile(r"""[^\s'"\\$<>;&|()]+""")
_OPERATOR = re.compile(r"\n|&&|\|\||;;?|\||&(?!>)|[()]")
_PLACEHOLDER = re.compile(r"<([A-Za-z][\w ./-]*)>")
_REDIRECTION = re.compile(r"\d*(?:>>|>\||>&|<&|<<<|<|>)|&>>?")
_MAX_EXPANDED = 10_000_000
"""Characters that variables may put into the text: one that doubles another, line by line, would fill any memory."""
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
        self._num_expanded = 0

    def assign(self, name: str, value: str) -> None:
        """Set a variable; one that was given beforehand keeps that value."""
        if name not in self._given:
            self._values[name] = value

    def expand(self, text: str) -> str:
        """``text`` with every known variable replaced; an unknown one stays as it is written, or takes its default.

        Raises:
            TranslateError: variables that grow without bound.
        """

        def replace(match: re.Match[str]) -> str:
            name, default = match[1] or match[2], match[3]
            if name in self._values:
                self._num_expanded += len(self._values[name])
                if self._num_expanded > _MAX_EXPANDED:
                    raise TranslateError(
                        f"the text's variables grow to more than {_MAX_EXPANDED:,} characters, last ${name}: give the "
                        "part with the commands"
                    )
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
    for words in _split_at_operators(_Scanner(text, first_line, variables).scan()):
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


def _split_at_operators(words: Iterable[_Word | None]) -> Iterator[list[_Word]]:
    command: list[_Word] = []
    for word in words:
        if word is not None:
            command.append(word)
        elif command:
            yield command
            command = []
    if command:
        yield command


class _Scanner:
    """Walks over the text; ``_at`` is where it is."""

    def __init__(self, text: str, line: int, variables: Variables) -> None:
        self._text = text
        self._at = 0
        self._line = line
        self._variables = variables

    def scan(self) -> Iterator[_Word | None]:
        """Words, expanded; None for what separates commands. Redirections are left out."""
        is_target = False
        while self._at < len(self._text):
            if self._take(_BLANK) or self._read_array():
                continue
            if not _PLACEHOLDER.match(self._text, self._at) and self._take(_REDIRECTION):
                is_target = True
            elif self._take(_OPERATOR):
                yield None
            else:
                words = self._read_word()
                if not is_target:
                    yield from words
                is_target = False

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._at)
        if match:
            self._move_to(match.end())
        return match

    def _move_to(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _read_array(self) -> bool:
        array = _ARRAY_BEGINNING.match(self._text, self._at)
        if array is None:
            return False
        end = _closing(self._text, array.end(), self._line)
        inner = _Scanner(self._text[array.end() : end], self._line, self._variables).scan()
        self._variables.assign(array[1], " ".join(word.text for word in inner if word))
        self._move_to(end + 1)
        return True

    def _read_word(self) -> tuple[_Word, ...]:
        """One word; several where an unquoted variable holds spaces."""
        begin, line = self._at, self._line
        pieces = _Pieces(keeps_whole=bool(_ASSIGNMENT_BEGINNING.match(self._text, begin)))
        while self._at < len(self._text) and (
            self._text[self._at] not in _WORD_ENDS or _PLACEHOLDER.match(self._text, self._at)
        ):
            self._read_piece(pieces)
        if self._at == begin:
            self._move_to(begin + 1)
        return pieces.words(line)

    def _read_piece(self, pieces: "_Pieces") -> None:
        if plain := self._take(_PLAIN):
            pieces.add(plain[0])
        elif placeholder := self._take(_PLACEHOLDER):
            pieces.add(self._variables.expand("$" + re.sub(r"\W+", "_", placeholder[1])))
        elif variable := self._take(_ARRAY) or self._take(_PARAMETER):
            pieces.add_split(self._variables.expand("${" + variable[1] + "}"))
        elif escaped := self._take(_ESCAPED):
            pieces.add(escaped[1].replace("\n", ""))
        elif self._text[self._at] in "'\"" and not _APOSTROPHE.match(self._text, self._at):
            self._read_quoted(pieces)
        elif substitution := _SUBSTITUTION.match(self._text, self._at):
            end = _closing(self._text, substitution.end(), self._line) + 1
            pieces.add(self._text[self._at : end])
            self._move_to(end)
        else:
            pieces.add(self._text[self._at])
            self._move_to(self._at + 1)

    def _read_quoted(self, pieces: "_Pieces") -> None:
        end = _closing_quote(self._text, self._at, self._line)
        inner = self._text[self._at + 1 : end]
        pieces.add(inner if self._text[self._at] == "'" else self._variables.expand(_unescape(inner)))
        pieces.quoted = True
        self._move_to(end + 1)


class _Pieces:
    """A word in the making."""

    def __init__(self, *, keeps_whole: bool) -> None:
        self._done: list[str] = []
        self._parts: list[str] = []
        self._keeps_whole = keeps_whole
        self.quoted = False

    def add(self, text: str) -> None:
        """Go on with the word."""
        self._parts.append(text)

    def add_split(self, text: str) -> None:
        """Go on with words that spaces divide; what is assigned keeps them."""
        head, *others = [text] if self._keeps_whole else text.split() or [""]
        self._parts.append(head)
        for other in others:
            self._done.append("".join(self._parts))
            self._parts = [other]

    def words(self, line: int) -> tuple[_Word, ...]:
        """What has come together."""
        found = [*self._done, "".join(self._parts)]
        quoted = self.quoted and not self._keeps_whole
        return tuple(_Word(text, quoted, line) for text in found if text or self.quoted)


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
