"""The runbooks, as tests read them: their commands and their queries."""

import re
from pathlib import Path

from tests.rendering import ROOT

PAGES = ROOT / "docs" / "runbooks"
INDEX = PAGES / "README.md"
SECTIONS = ("## What it means", "## What to look at", "## What to do")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page_of(alert: str) -> Path:
    """Where an alert's page lies."""
    return PAGES / f"{alert}.md"


def commands(alert: str) -> list[str]:
    """Lines for a shell, in the page's order; NAMESPACE and NAME stand for the alert's labels."""
    return _lines(alert, "sh")


def queries(alert: str) -> list[str]:
    """PromQL, one a line."""
    return _lines(alert, "promql")


def languages(alert: str) -> set[str]:
    """Of which kinds the page's blocks are."""
    return {language for language, _ in _BLOCK.findall(page_of(alert).read_text())}


def _lines(alert: str, wanted: str) -> list[str]:
    blocks = [text for language, text in _BLOCK.findall(page_of(alert).read_text()) if language == wanted]
    return [line for text in blocks for line in text.splitlines() if line.strip()]
