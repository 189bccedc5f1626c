"""The arguments of ``eval_model``, read off Python without running it."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llava_trainer.translate.blocks import Statement
from llava_trainer.translate.errors import TranslateError

READ_KEYS = (
    "model_path", "model_base", "query", "conv_mode", "image_file", "sep", "temperature", "top_p", "num_beams",
    "max_new_tokens",
)  # fmt: skip
"""What ``eval_model`` (llava/eval/run_llava.py) reads; it has no defaults of its own for any of them."""
_NEEDED = ("query", "image_file", "sep", "temperature", "top_p", "num_beams", "max_new_tokens")
_DEEPEST = 100
"""Parts of a value within each other; also ends a name that is defined by itself."""
_FACTORIES = ("Namespace", "SimpleNamespace", "type", "dict", "AttrDict", "EasyDict")

Value = str | int | float | bool | None | Sequence[object]


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """What one call of ``eval_model`` is given."""

    values: Mapping[str, Value]
    """Of the keys that matter, what they are."""
    given: tuple[str, ...]
    """Every key that is given."""
    line: int


def find_eval_arguments(statements: Sequence[Statement]) -> tuple[EvalArguments, ...]:
    """Argument blocks in the order in which they are written.

    Raises:
        TranslateError: a value that matters is computed by a call, or is of a kind that is not read.
    """
    known: dict[str, ast.expr] = {}
    found = []
    for statement in statements:
        offset = statement.line - statement.tree.lineno
        nodes: list[ast.AST] = [statement.tree]
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.Assign):
                known.update((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
            fields = _block_fields(node)
            if fields and ("query" in fields or "image_file" in fields):
                found.append(_read_block(fields, known, node, offset))
            else:
                nodes.extend(ast.iter_child_nodes(node))
    return tuple(found)


def _block_fields(node: ast.AST) -> dict[str, ast.expr] | None:
    """Fields of ``type('Args', (), {...})``, of ``Namespace(...)`` and its like, or of a class body."""
    if isinstance(node, ast.ClassDef):
        return {
            target.id: line.value
            for line in node.body
            if isinstance(line, ast.Assign)
            for target in line.targets
            if isinstance(target, ast.Name)
        }
    if not isinstance(node, ast.Call) or _name(node.func) not in _FACTORIES:
        return None
    if _name(node.func) == "type":
        body = node.args[2] if len(node.args) == 3 else None
        if isinstance(body, ast.Call) and _name(body.func) == "dict":
            return {keyword.arg: keyword.value for keyword in body.keywords if keyword.arg}
        return dict(_string_keys(body)) if isinstance(body, ast.Dict) else None
    return {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}


def _string_keys(node: ast.Dict) -> Iterable[tuple[str, ast.expr]]:
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value, value


def _read_block(
    fields: Mapping[str, ast.expr], known: Mapping[str, ast.expr], node: ast.AST, offset: int
) -> EvalArguments:
    values = {key: _evaluate(fields[key], known, key, offset) for key in _NEEDED if key in fields}
    return EvalArguments(values=values, given=tuple(fields), line=getattr(node, "lineno", 1) + offset)


def _evaluate(node: ast.expr, known: Mapping[str, ast.expr], key: str, offset: int, depth: int = 0) -> Value:
    """Value of an expression that needs nothing to be run: constants, names of them, their sums and lists."""
    if depth > _DEEPEST:
        raise TranslateError(f"line {getattr(node, 'lineno', 1) + offset}: {key} is put together of too many parts")

    def again(part: ast.expr) -> Value:
        return _evaluate(part, known, key, offset, depth + 1)

    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in known:
            return again(known[name])
        case ast.Name(id=name):
            problem = f"the name {name}, which the text gives no value"
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [again(part) for part in parts]
        case ast.UnaryOp(op=ast.USub(), operand=part):
            number = again(part)
            if isinstance(number, int | float):
                return -number
            problem = "a minus in front of what is no number"
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            values = again(left), again(right)
            if all(isinstance(value, str) for value in values):
                return f"{values[0]}{values[1]}"
            problem = "a sum of what is no text"
        case ast.JoinedStr(values=parts):
            return "".join(str(again(part)) for part in parts)
        case ast.FormattedValue(value=part, conversion=-1, format_spec=None):
            return again(part)
        case ast.Call(func=function):
            problem = f"a call of {_name(function) or 'a function'}"
        case _:
            problem = f"an expression of kind {type(node).__name__}"
    raise TranslateError(
        f"line {getattr(node, 'lineno', 1) + offset}: {key} is {problem}; nothing of the text is run, so write its "
        "value there"
    )


def _name(node: ast.expr) -> str:
    """Last part of a dotted name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
