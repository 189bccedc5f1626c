"""A pasted text stays what it was put in as: a value, or a comment."""

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from llava_trainer.translate.draft import Note
from llava_trainer.translate.yaml_text import write_yaml

TEXTS = st.text(max_size=60) | st.sampled_from([
    "one: 1\ntwo: 2", "# a", "a #b", "x\r\n- y", "\u2028spec: {}", "\x85a: 1", "\u202egnp.exe", "---\na: 1", "yes",
    "1e-5", "no", "'", '"', "\\", "{a: b}", "[a, b]", "%YAML 1.1", "? a", "\t", "\ufeffa", "`rm -rf /`", "$(id)",
])  # fmt: skip
"""What may stand in a pasted command: anything, and what YAML gives a meaning."""
FIELDS = st.from_regex("[a-z]{3}[A-Z][A-Za-z]{0,20}", fullmatch=True)
"""Names that no pasted text has a part in."""
SCALARS = (
    TEXTS | st.integers(min_value=-(2**60), max_value=2**60) | st.booleans() | st.none()
    | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3), max_leaves=8
)
DOCUMENTS = st.dictionaries(FIELDS, VALUES, min_size=1, max_size=4)


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
