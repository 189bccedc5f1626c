"""What people paste is read as it was meant: scripts, notebook cells, pages, with variables, comments and prompts."""

import json

import pytest

from llava_trainer.translate.blocks import Pasted, read_pasted
from llava_trainer.translate.errors import TranslateError
from llava_trainer.translate.eval_block import EvalArguments, find_eval_arguments


def words(text: str, **variables: str) -> list[tuple[str, ...]]:
    return [command.words for command in read_pasted(text, variables).commands]


def questions(text: str) -> tuple[EvalArguments, ...]:
    return find_eval_arguments(read_pasted(text, {}).statements)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.py --x 1 \\\n  --y 2", ("a.py", "--x", "1", "--y", "2")),
        ("!a.py --x 1", ("a.py", "--x", "1")),
        ("%%bash\na.py --x 1", ("a.py", "--x", "1")),
        ("```bash\na.py --x 1\n```", ("a.py", "--x", "1")),
        ("$ a.py --x 1", ("a.py", "--x", "1")),
        ("(llava) me@host:~/LLaVA$ a.py --x 1", ("a.py", "--x", "1")),
        ("a.py --x 1 # why", ("a.py", "--x", "1")),
        ("a.py --x 1 > log.txt 2>&1 &", ("a.py", "--x", "1")),
        ("nohup sudo time a.py --x", ("a.py", "--x")),
        ("a.py --x 'it is $HOME'", ("a.py", "--x", "it is $HOME")),
        ('V=v1\na.py --x "$V b" --y ${V}c', ("a.py", "--x", "v1 b", "--y", "v1c")),
        ("export V='a b'\na.py $V \"$V\"", ("a.py", "a", "b", "a b")),
        ("a.py ${V:-v0} $W", ("a.py", "v0", "$W")),
        ("OPTS=(--x 1 # why\n  --y 'b')\na.py \"${OPTS[@]}\"", ("a.py", "--x", "1", "--y", "b")),
        ("%env V=v1\n!a.py --x $V", ("a.py", "--x", "v1")),
        ("v = 'v1'\n!a.py --x {v} --y $v --z {w}", ("a.py", "--x", "v1", "--y", "v1", "--z", "$w")),
        ("a.py --x <your data>", ("a.py", "--x", "$your_data")),
        ("a.py --x $(date +%Y)", ("a.py", "--x", "$(date +%Y)")),
        ("for i in 1; do\n a.py --x 1; done", ("a.py", "--x", "1")),
        ("run() {\n a.py --x 1\n}", ("a.py", "--x", "1")),
        ("a.py --x 'one\ntwo' --y", ("a.py", "--x", "one\ntwo", "--y")),
        ("a.py --x 1 \\\r\n  --y 2\r\n", ("a.py", "--x", "1", "--y", "2")),
    ],
)
def test_a_command_is_found_with_its_words(text: str, expected: tuple[str, ...]):
    assert expected in words(text)


def test_a_notebook_is_its_code_cells():
    cells = [
        {"cell_type": "markdown", "source": ["a.py --not-this"]},
        {"cell_type": "code", "source": ["%%bash\n", "a.py --x 1 \\\n", "  --y 2"]},
        {"cell_type": "code", "source": "args = Namespace(query='What?')"},
        {"cell_type": "code"},
    ]
    pasted = read_pasted(json.dumps({"cells": cells}), {})
    assert [command.words for command in pasted.commands] == [("a.py", "--x", "1", "--y", "2")]
    assert find_eval_arguments(pasted.statements)[0].values["query"] == "What?"


@pytest.mark.parametrize("text", ['{"cells": 3}', '{"cells": [1, {"cell_type": "code", "source": ""}]}'])
def test_a_notebook_without_code_is_empty(text: str):
    with pytest.raises(TranslateError, match="the text is empty"):
        read_pasted(text, {})


@pytest.mark.parametrize("text", ["{ a.py --x 1; }", '{"a": 1}\na.py --x 1'])
def test_what_only_begins_like_a_notebook_is_text(text: str):
    assert ("a.py", "--x", "1") in words(text)


def test_variables_that_are_given_win():
    assert words("V=v1\na.py $V $2", V="v2", **{"2": "second"})[-1] == ("a.py", "v2", "second")


def test_commands_know_their_line_and_what_is_set_before_them():
    (_, command) = read_pasted("\nls -l\nexport A=1\nB=2 \\\n  a.py", {}).commands
    assert command.line == 5
    assert command.environment == {"A": "1", "B": "2"}


def test_a_continuation_that_a_shell_would_not_see_is_read_and_said():
    pasted = read_pasted("a.py --x 1 \\ \n  --y 2 \\\n  # --z 3 \\\n  --w 4", {})
    assert pasted.commands[0].words == ("a.py", "--x", "1", "--y", "2", "--w", "4")
    assert [remark.split(":")[0] for remark in pasted.remarks] == [
        "line 1", "line 3 is a comment inside a continued command",
    ]  # fmt: skip


def test_sentences_around_the_command_are_passed_over():
    text = "Don't forget to import the weights.\nwith the following:\nRun train.py (it's quick):\na.py --x 1\nThat's it"
    assert ("a.py", "--x", "1") in words(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n ", "the text is empty"),
        ("ls\na.py --x 'one", "line 2: the quote ' that begins at \"'one\" is never closed"),
        ('a.py --x "one', 'line 1: the quote "'),
        ("a.py --x $(date", "line 1: the parenthesis before 'date' is never closed"),
        ("args = type('A', (), {'query': 'x',", "the Python that begins in line 1 cannot be read"),
        ("args = Namespace(query=" + "-" * 100_000 + "1)", "it is too long or too deep"),
        ("a.py --x 'one" + "\n" * 1000 + "'", "line 1: the quote '"),
        ("python - <<EOF\nargs = type('A', (\nEOF", "the Python that begins in line 2 cannot be read"),
        ("A=lol\n" + "A=$A$A\n" * 24, "the text's variables grow to more than 10,000,000 characters, last $A"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, message: str):
    with pytest.raises(TranslateError) as caught:
        read_pasted(text, {})
    assert message in str(caught.value)


BLOCK = (
    "args = type('Args', (), {'query': prompt, 'image_file': 'a.png', 'top_p': None, 'temperature': -0.5, 'x': f()})()"
)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        (f"prompt = 'What?'\n{BLOCK}", "What?"),
        (f"one = 'Wh'\nprompt = one + 'at?'\n{BLOCK}", "What?"),
        (f"n = 3\nprompt = f'What {{n}}?'\n{BLOCK}", "What 3?"),
        (f"prompt = ('What '\n  'now?')\n{BLOCK}", "What now?"),
        (f">>> prompt = 'What?'\n>>> {BLOCK}", "What?"),
        ("args = argparse.Namespace(query='What?')", "What?"),
        ("args = SimpleNamespace(\n  query='What?',\n)", "What?"),
        ("class Args:\n    model_path = load()\n    query = 'What?'\n", "What?"),
        ("eval_model(type('Args', (), dict(query='What?'))())", "What?"),
        ("with torch.no_grad():\n    eval_model(Namespace(query='What?'))\n", "What?"),
        ("python - <<'EOF'\nargs = Namespace(query='What?')\nEOF", "What?"),
    ],
)
def test_arguments_are_read_without_being_run(text: str, query: str):
    (found,) = questions(text)
    assert found.values["query"] == query


def test_values_keep_their_kinds_and_calls_that_do_not_matter_are_left_alone():
    (found,) = questions(f"prompt = 'x'\n{BLOCK}")
    assert found.values == {"query": "x", "image_file": "a.png", "top_p": None, "temperature": -0.5}
    assert found.given == ("query", "image_file", "top_p", "temperature", "x")
    assert found.line == 2


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("input('?')", "query is a call of input; nothing of the text is run"),
        ("prompts[0]", "query is an expression of kind Subscript"),
        ("unknown", "query is the name unknown, which the text gives no value"),
        ("-'a'", "a minus in front of what is no number"),
        ("1 + 'a'", "a sum of what is no text"),
        ("'a' + " * 200 + "'a'", "query is put together of too many parts"),
        ("loop", "query is put together of too many parts"),
    ],
)
def test_values_that_would_have_to_be_run_are_refused(value: str, problem: str):
    with pytest.raises(TranslateError, match=r"^line [12]: ") as caught:
        questions(f"loop = loop\nargs = Namespace(query={value})")
    assert problem in str(caught.value)


def test_nothing_of_the_text_is_run(tmp_path):
    file = tmp_path / "made"
    text = f"import pathlib\npathlib.Path({str(file)!r}).touch()\n!touch {file}\na.py $(touch {file}) `touch {file}`"
    pasted = read_pasted(text, {})
    assert isinstance(pasted, Pasted)
    assert not file.exists()
