"""What is written is what YAML reads, whatever the text was; comments stand in front of what they are about."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llava_trainer.translate.draft import Note
from llava_trainer.translate.yaml_text import write_yaml


@pytest.mark.parametrize(
    "value",
    [
        "plain", "pvc://claim/a b/c.json", "hf://a/b@main", "yes", "Null", "1e3", "0x1f", "1_000", "-", "", " a ",
        "a: b", "a #b", "#a", "[a]", "{a", "*a", "&a", "!a", "%a", "@a", "`a", "'a", '"a', "a\nb", "a\tb",
        "ü\u2028\x85é\x7f", "😀", "~", "200Gi", "12:30", "2001-01-01", "a:", "a,b", "=", "<<", ".inf", "...", "---",
        "\\n", "1.0",
        1, 0, -2, 1.0, 2e-5, 1e-3, 0.05, 1.5e-7, 1e22, 0.0, True, False, None, [], {}, {"a": []},
    ],
)  # fmt: skip
def test_every_value_comes_back(value: Any):
    document = {"a": {"value": value}, "list": [{"text": value}, value]}
    assert yaml.safe_load(write_yaml(document, [], [])) == document


def test_comments_stand_in_front_of_their_place_or_of_the_nearest_above():
    notes = [
        Note(place=("a", "b"), text="about b", is_warning=False),
        Note(place=("a", "b"), text="about b", is_warning=True),
        Note(place=("a", "gone", "deep"), text="about a", is_warning=False),
        Note(place=("gone",), text="about all", is_warning=False),
    ]
    assert write_yaml({"a": {"b": 1}}, notes, ["heading"]) == (
        "# heading\n# about all\n# about a\na:\n  # about b\n  b: 1\n"
    )


def test_a_comment_cannot_break_out_of_itself():
    text = "one\ntwo: 3\r\nfour\x85five\u2028six: 7 " + "long " * 60
    written = write_yaml({"a": 1}, [Note(place=("a",), text=text, is_warning=False)], [])
    assert yaml.safe_load(written) == {"a": 1}
    assert all(len(line) <= 120 for line in written.splitlines())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    | st.sampled_from(["yes", "No", "on", "1_000", "0x1F", "1:30", "~", "", " a", "- b", "a: b", "#c", "2e-5", "64Gi"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "bC", "d"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["spec", "model", "x"]), VALUES, min_size=1), st.text(max_size=200))
def test_whatever_is_written_is_read_back_by_a_reader_of_yaml_1_1(document: dict[str, Any], text: str) -> None:
    notes = [Note(place=(next(iter(document)),), text=text, is_warning=False)]
    written = write_yaml(document, notes, [text])
    assert yaml.safe_load(written) == document
    assert all(c.isprintable() or c == "\n" for c in written)
