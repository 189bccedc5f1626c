"""Text of others made fit to show: nothing that moves a cursor, turns a line round, hides, or cannot be encoded."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_api.text import ELLIPSIS, cut, escape, redact, show

ANYTHING = st.text(st.characters(codec=None, exclude_categories=()))
"""Half surrogate pairs too."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("invoice 7 – Größe €, 漢字, עברית, 🙂.jpg", "invoice 7 – Größe €, 漢字, עברית, 🙂.jpg"),
        ("\x1b[2J\x07bell", r"\x1b[2J\x07bell"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x85\x9b31m", r"\u0085\u009b31m"),
        ("exe.\u202egpj\u2066x\u2069", r"exe.\u202egpj\u2066x\u2069"),
        ("in\u200bvis\u200dible\ufeff\u00ad", r"in\u200bvis\u200dible\ufeff\u00ad"),
        ("line\u2028para\u2029", r"line\u2028para\u2029"),
        ("filler\u3164\u115f", r"filler\u3164\u115f"),
        ("tag\U000e0041", r"tag\U000e0041"),
        (b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), r"caf\xe9.jpg"),
        ("half \ud83d", r"half \ud83d"),
        ("private \ue000, unassigned \u0378", r"private \ue000, unassigned \u0378"),
        (r"C:\x1b", r"C:\x1b"),
    ],
)
def test_what_is_not_to_be_shown_is_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_lines_stay_where_they_are_wanted() -> None:
    assert escape("a\n\tb\r\nc\x1b", multiline=True) == "a\n\tb\\r\nc\\x1b"


@given(ANYTHING, st.booleans())
def test_escaped_is_encodable_printable_and_the_same_again(text: str, multiline: bool) -> None:
    found = escape(text, multiline=multiline)
    found.encode()
    assert escape(found, multiline=multiline) == found
    allowed = {"\n", "\t"} if multiline else set()
    assert not [c for c in found if unicodedata.category(c)[0] == "C" and c not in allowed]
    assert not {"\u2028", "\u2029"} & set(found)


@given(ANYTHING, st.integers(1, 40), st.integers(3, 60), st.booleans())
def test_cut_keeps_its_limits_and_its_end(text: str, max_chars: int, max_bytes: int, keep_end: bool) -> None:
    whole = escape(text)
    found = cut(whole, max_chars=max_chars, max_bytes=max_bytes, keep_end=keep_end)
    assert len(found) <= max_chars
    assert len(found.encode()) <= max_bytes
    assert cut(found, max_chars=max_chars, max_bytes=max_bytes, keep_end=keep_end) == found
    if found != whole:
        kept = found.removeprefix(ELLIPSIS) if keep_end else found.removesuffix(ELLIPSIS)
        assert whole.endswith(kept) if keep_end else whole.startswith(kept)


def test_neither_characters_nor_escapes_are_divided() -> None:
    assert cut("ab\\x1b", max_chars=5) == "ab…"
    assert cut("ab\\x1bcd", max_chars=7) == "ab\\x1b…"
    assert cut("äöü", max_bytes=5) == "ä…"
    assert cut("äöü", max_bytes=6) == "äöü"
    assert cut("a\\u202eb", max_chars=3, keep_end=True) == "…b"


def test_anything_is_shown() -> None:
    assert show(ValueError("no\x1b such file"), max_chars=8) == "no\\x1b …"
    assert show("a\nb", multiline=True) == "a\nb"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://h:1/a.zip?X-Amz-Signature=abc&b=c failed", "GET https://h:1/a.zip?… failed"),
        ("'https://h/a?sig=x' and \"http://me:pw@proxy:3128\"", "'https://h/a?…' and \"http://…@proxy:3128\""),
        ("https://h/a.zip?sig=x#sha256=ab", "https://h/a.zip?…#sha256=ab"),
        ("hf://owner/name@main and s3://b/what? and why?", "hf://owner/name@main and s3://b/what?… and why?"),
        ("HTTPS://ME:PW@H/?a", "HTTPS://…@H/?…"),
    ],
)
def test_secrets_of_addresses_are_taken_out(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown
    assert show(text) == shown


@given(ANYTHING)
def test_what_is_shown_comes_out_the_same_again(text: str) -> None:
    assert show(show(text, max_chars=50), max_chars=50) == show(text, max_chars=50)
