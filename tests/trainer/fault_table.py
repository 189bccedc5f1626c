"""The table of docs/publishing.md: what is visible at a destination after each fault. Its rows are what tests saw.

``RENEW_FAULTS=1 pytest tests/trainer/test_publish_bucket_faults.py (and the others)`` writes them.
"""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "publishing.md"
NOTHING, WHOLE = "nothing that loads", "the whole model"
_HEAD = "| destination | fault | visible afterwards | the next attempt |\n| --- | --- | --- | --- |\n"
_BEGIN, _END = "<!-- faults -->\n", "<!-- /faults -->\n"


def describe_visible(seen: Iterable[str]) -> str:
    """What was seen, NOTHING or WHOLE, and how often."""
    counts = Counter(seen)
    assert set(counts) <= {NOTHING, WHOLE}, counts
    return ", ".join(f"{what} ({counts[what]} times)" for what in sorted(counts))


def check_row(destination: str, fault: str, visible: str, repeat: str) -> None:
    """Make sure that the page says what was seen.

    Args:
        destination: s3, pvc, hf or oci.
        fault: what went wrong, with how many times it was tried.
        visible: see ``describe_visible``.
        repeat: what came of the next attempt.
    """
    row = f"| {destination} | {fault} | {visible} | {repeat} |\n"
    if os.environ.get("RENEW_FAULTS"):
        _write(row, f"| {destination} | {fault.split(',')[0]}")
    assert row in PAGE.read_text(encoding="utf-8"), f"docs/publishing.md does not say: {row}(RENEW_FAULTS=1 writes it)"


def _write(row: str, beginning: str) -> None:
    before, rest = PAGE.read_text(encoding="utf-8").split(_BEGIN)
    table, after = rest.split(_END)
    rows = [one for one in table.removeprefix(_HEAD).splitlines(keepends=True) if not one.startswith(beginning)]
    order = ["s3", "pvc", "hf", "oci"]
    rows = sorted([*rows, row], key=lambda one: (order.index(one.split()[1]), one))
    PAGE.write_text(before + _BEGIN + _HEAD + "".join(rows) + _END + after, encoding="utf-8")
