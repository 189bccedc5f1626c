"""What is written is what YAML reads, whatever the text was; comments stand in front of what they are about."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from llava_trainer.translate.draft import Note
from llava_trainer.translate.yaml_text import write_yaml


@pytest.mark.parametrize(
    "value",
    [
        "plain", "pvc://claim/a b/c.json", "hf://a/b@main", "yes", "Null", "1e3", "0x1f", "1_000", "-", "", " a ",
        "a: b", "a #b", "#a", "[a]", "{a", "*a", "&a", "!a", "%a", "@a", "`a", "'a", '"a', "a\nb", "a\tb",
        "ü\u2028\x85é\x7f", "😀", "~", "200Gi", "12:30", "2001-01-01", "a:", "a,b", "=", "<<", ".inf", "...", "---",
        "\\n", "1.0",
        1, 0, -2, 1.0, 2e-5, 1e-3, 0.05, 1.5e-7, 1e22, 0.0, True, False, None, [], {},
        {"a": []}, 1.234567890123e-5, 123456789.125, float("inf"),
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


TEXTS = st.text(max_size=60) | st.sampled_from([
    "one: 1\ntwo: 2", "# a", "a #b", "x\r\n- y", "\u2028spec: {}", "\x85a: 1", "\u202egnp.exe", "---\na: 1", "yes",
    "1e-5", "no", "'", '"', "\\", "{a: b}", "[a, b]", "%YAML 1.1", "? a", "\t", "\ufeffa", "`rm -rf /`", "$(id)",
])  # fmt: skip
"""What may stand in a pasted command: anything, and what YAML gives a meaning."""
NAMES = st.from_regex("[A-Za-z][A-Za-z0-9]{0,20}", fullmatch=True) | st.sampled_from(["yes", "null", "n", "0.5", "~"])
"""Of fields: no pasted text becomes one."""
SCALARS = (
    TEXTS | st.integers(min_value=-(2**60), max_value=2**60) | st.booleans() | st.none()
    | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=4)


def places_of(document: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(document, dict):
        return [place]
    return [place, *(found for key, value in document.items() for found in places_of(value, (*place, key)))]


@given(document=DOCUMENTS, data=st.data())
def test_whatever_a_text_holds_it_stays_a_value_or_a_comment(document: dict[str, Any], data: st.DataObject):
    places = st.sampled_from(places_of(document))
    notes = data.draw(st.lists(st.builds(Note, place=places, text=TEXTS, is_warning=st.booleans()), max_size=4))
    heading = data.draw(st.lists(TEXTS, max_size=2))
    written = write_yaml(document, notes, heading)
    # As kubectl reads it, and as readers of YAML 1.2 do.
    assert yaml.safe_load(written) == document
    assert YAML(typ="safe", pure=True).load(written) == document
    lines = written.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines), "nothing turns or hides what is read"
    values = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert values == write_yaml(document, [], []).removesuffix("\n").split("\n"), "comments change nothing else"
