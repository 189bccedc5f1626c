"""docs/security.md names tests that exist, behind every claim, and quotes what other pages really say."""

import re

import pytest

from tests.named import source_of
from tests.policies import EVERYTHING
from tests.rendering import ROOT

TEXT = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("|") and not set(line) <= set("|- ")
]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda value: str(value).rpartition("/")[2])
def test_named_tests_exist(path: str, name: str) -> None:
    source_of(f"{path}::{name}")


def test_every_claim_has_a_test() -> None:
    header: list[str] = []
    claims = 0
    for row in ROWS:
        if row[-1] in ("test", "what it restricts"):
            header = row
        elif header[-1] == "test":
            claims += 1
            assert "::test_" in row[-1], f"no test behind: {row[0]}"
    assert claims >= 30


def test_every_rule_of_the_chart_is_told() -> None:
    told = {row[0].strip("`") for row in ROWS if len(row) == 3 and row[0].startswith("`")}
    assert told == {*EVERYTHING["policy"], "admission"}


@pytest.mark.parametrize("row", [row for row in ROWS if row[0].endswith(".md")], ids=lambda row: row[1][:40])
def test_quoted_pages_say_so(row: list[str]) -> None:
    page = " ".join((ROOT / row[0]).read_text().split()).replace("**", "")
    assert row[1] in page, f"{row[0]} does not say: {row[1]}"


PROMISES = re.compile(r"\b(read-only|only the|nothing (of it|that)|never|restricted|credential|Secrets?|nowhere)\b")


def test_readme_promises_nothing_that_is_not_told_here() -> None:
    """A sentence of README that sounds like a promise about safety is quoted in docs/security.md."""
    quoted = [row[1] for row in ROWS if row[0] == "README.md"]
    prose = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    prose, summaries = re.subn(r"\*\*Who may do what\.\*\*.*?\n\n", "", prose, flags=re.DOTALL)
    assert summaries == 1, "the paragraph that sums up docs/security.md"
    for sentence in re.split(r"(?<=[.:;?])\s+", " ".join(prose.split())):
        if PROMISES.search(sentence):
            assert any(quote in sentence for quote in quoted), sentence
