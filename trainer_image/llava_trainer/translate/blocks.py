"""Pasted text into its commands and its Python: scripts, notebook cells, Markdown and what lies between.

In a notebook ``!`` and ``%%bash`` mark the shell's lines; in a script everything is the shell's; in text copied from a
page both stand one below the other. What begins like Python is taken for Python, the rest for the shell.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llava_trainer.translate.errors import TranslateError
from llava_trainer.translate.notebook import unwrap_notebook
from llava_trainer.translate.shell import Command, Variables, read_commands

_FENCE = re.compile(r"\s*(?:```|~~~)(\w*)")
_HERE_DOCUMENT = re.compile(r"(?<!<)<<-?\s*(['\"]?)(\w+)\1")
_PROMPT = re.compile(r"^\s*(?:\(\w+\)\s*)?(?:[\w.-]+@[\w.-]+[:\s][^$#]*)?[$#](?=\s+\w+)\s+(?!.*^#)")
_PYTHON_PROMPT = re.compile(r"^(?:>>>|\.\.\.)(?: |$)|^In \[\d*\]: ")
_CELL = re.compile(r"\s*%%(\w+)")
_SHELL_CELLS = frozenset({"bash", "sh", "shell", "script", "console", "zsh"})
_ENVIRONMENT = re.compile(r"\s*%(?:set_)?env\s+(\w+)[=\s]\s*(.*)")
_PYTHON = re.compile(
    r"(?:from\s+[\w.]+\s+import\b|import\s+[\w.]+|with\s.*:|def\s+\w+\(|class\s+\w+|for\s.*\sin\s.*:\s*$|"
    r"try:|if\s[^\[]*:\s*$|else:|except\b.*:|@\w|print\(|[\w.]+(?:\s*:\s*\w+)?\s+=\s|[\w.]+(?:\[[^\]]*\])?\s*=\s*"
    r"(?:type|argparse|Namespace|SimpleNamespace|f?['\"]{3}|\{|\[)|[A-Za-z_][\w.]*\(.*)"
)
_IN_COMMANDS = re.compile(r"\.py\b|--\w|=|\\$|\$\w")
"""What tells a command from a sentence: a quote that stays open in a sentence is an apostrophe."""
_IN_EVALUATION = re.compile(r"eval_model|query|image_file|\btype\(")
_LONGEST_LINES = 400
"""Lines after which a quotation or a statement is no longer expected to end: each is read again with every line."""
_MISPLACED_CONTINUATION = re.compile(r"\\[ \t]+(?:#.*)?$")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One Python statement."""

    tree: ast.stmt
    line: int
    """Where it begins in the whole text, counted from 1."""


@dataclass(frozen=True, kw_only=True)
class Pasted:
    """What the text holds."""

    commands: tuple[Command, ...]
    statements: tuple[Statement, ...]
    remarks: tuple[str, ...]
    """What had to be read other than a shell would."""


def read_pasted(text: str, given: Mapping[str, str]) -> Pasted:
    """Read a pasted text.

    Args:
        text: as it was copied.
        given: variables that the text uses and does not assign.

    Raises:
        TranslateError: the text is empty, a quote is never closed, or its Python is not Python.
    """
    text = unwrap_notebook(text)
    if not text.strip():
        raise TranslateError("the text is empty: paste the deepspeed command, or name the file that holds it")
    reader = _Reader(text.replace("\r\n", "\n").split("\n"), Variables(given))
    reader.run()
    return Pasted(commands=tuple(reader.commands), statements=tuple(reader.statements), remarks=tuple(reader.remarks))


class _Reader:
    """Walks over the lines; ``_at`` is the next one."""

    def __init__(self, lines: Sequence[str], variables: Variables) -> None:
        self._lines = lines
        self._variables = variables
        self._at = 0
        self.commands: list[Command] = []
        self.statements: list[Statement] = []
        self.remarks: list[str] = []

    def run(self) -> None:
        """Read to the end."""
        shell_only = self._lines[0].startswith("#!") and "python" not in self._lines[0]
        while self._at < len(self._lines):
            line = self._lines[self._at]
            mark = _CELL.match(line) or _FENCE.match(line)
            if mark:
                shell_only = mark[1] in _SHELL_CELLS
                self._at += 1
            elif not line.strip() or line.lstrip().startswith("#"):
                self._at += 1
            elif environment := _ENVIRONMENT.match(line):
                self._variables.assign(environment[1], environment[2].strip())
                self._at += 1
            elif re.match(r"\s*%(?!%)", line):
                self._at += 1
            elif not shell_only and self._is_python(line):
                self._read_python()
            else:
                self._read_shell()

    @staticmethod
    def _is_python(line: str) -> bool:
        function = re.match(r"\s*\w+\(\)\s*\{", line)
        return not function and bool(_PYTHON_PROMPT.match(line) or _PYTHON.match(line.strip()))

    def _read_shell(self) -> None:
        """One command with its continuations, and with further lines until its quotes are closed."""
        first = self._at
        text = self._take_continued()
        if opening := _HERE_DOCUMENT.search(text):
            self._read_here_document(text, opening[2])
            return
        while True:
            try:
                known = len(self.commands)
                self.commands += read_commands(text, first + 1, self._variables)
            except TranslateError:
                del self.commands[known:]
                if not _IN_COMMANDS.search(text):
                    return
                if self._at >= min(len(self._lines), first + _LONGEST_LINES):
                    raise
                text += "\n" + self._take_continued()
            else:
                return

    def _read_here_document(self, text: str, end: str) -> None:
        """Python that is handed to an interpreter; what is handed to anything else is passed over."""
        first = self._at
        while self._at < len(self._lines) and self._lines[self._at].strip() != end:
            self._at += 1
        if re.search(r"\bpython", text):
            self._python("\n".join(self._lines[first : self._at]), first)
        self._at += 1

    def _python(self, source: str, first: int) -> None:
        try:
            trees = ast.parse(_dedent(source)).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _unreadable(first, error) from error
        self.statements += [Statement(tree=tree, line=first + tree.lineno) for tree in trees]
        for tree in trees:
            for name, value in assigned_constants(tree):
                self._variables.assign(name, str(value))

    def _take_continued(self) -> str:
        """Lines joined by backslashes, as a shell takes them and as people mean them."""
        taken: list[str] = []
        while self._at < len(self._lines):
            line = _PROMPT.sub("", self._lines[self._at]) if not taken else self._lines[self._at]
            if not taken and line.lstrip().startswith("!"):
                line = re.sub(r"(?<![$\w])\{([A-Za-z_]\w*)\}", r"${\1}", line.lstrip()[1:])
            number = self._at + 1
            self._at += 1
            if taken and line.lstrip().startswith("#"):
                self.remarks.append(f"line {number} is a comment inside a continued command: left out")
                taken.append(" \\")
                continue
            if misplaced := _MISPLACED_CONTINUATION.search(line):
                self.remarks.append(f"line {number}: what follows the backslash keeps it from continuing the line; "
                                    "read as if nothing followed it")  # fmt: skip
                line = line[: misplaced.start()] + "\\"
            taken.append(line)
            if not line.endswith("\\"):
                break
        return "\n".join(taken)

    def _read_python(self) -> None:
        """One statement, as long as it takes to be one."""
        first, source = self._at, ""
        problem: Exception = SyntaxError("it is not complete")
        end = min(len(self._lines), first + _LONGEST_LINES)
        while self._at < end and not self._ends_python(self._lines[self._at], bool(source)):
            source += _PYTHON_PROMPT.sub("", self._lines[self._at]) + "\n"
            self._at += 1
            try:
                ast.parse(_dedent(source))
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                problem = error
                continue
            if not self._continues_indented():
                self._python(source, first)
                return
        if _IN_EVALUATION.search(source):
            raise _unreadable(first, problem)
        # A sentence that begins like Python.
        self._at = first + 1

    def _ends_python(self, line: str, begun: bool) -> bool:
        return begun and bool(_FENCE.match(line) or _CELL.match(line) or line.startswith("!"))

    def _continues_indented(self) -> bool:
        following = next((line for line in self._lines[self._at :] if line.strip()), "")
        following = _PYTHON_PROMPT.sub("", following) if following.startswith("...") else following
        return bool(re.match(r"[ \t]+\S|(else|elif|except|finally)\b", following)) and not following.strip().startswith(
            "!"
        )


def _unreadable(first: int, error: Exception) -> TranslateError:
    line = first + ((error.lineno or 1) if isinstance(error, SyntaxError) else 1)
    problem = error.msg if isinstance(error, SyntaxError) else "it is too long or too deep"
    return TranslateError(f"the Python that begins in line {first + 1} cannot be read: line {line}: {problem}")


def assigned_constants(tree: ast.stmt) -> Iterator[tuple[str, object]]:
    """Names that a statement gives a constant, with it."""
    if isinstance(tree, ast.Assign) and isinstance(tree.value, ast.Constant):
        for target in tree.targets:
            if isinstance(target, ast.Name):
                yield target.id, tree.value.value


def _dedent(source: str) -> str:
    margin = re.match(r"[ \t]*", source)
    width = len(margin[0]) if margin else 0
    return "\n".join(line[width:] if not line[:width].strip() else line for line in source.split("\n"))
