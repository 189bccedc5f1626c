"""The log: one line a message, whatever others have put into it."""

import logging
import sys

from llava_operator.telemetry.logs import PlainFormatter


def format_record(message: str, *arguments: object, failed: bool = False) -> str:
    exc_info = None
    if failed:
        try:
            raise ValueError("a\x1b[2Jb")
        except ValueError:
            exc_info = sys.exc_info()
    record = logging.LogRecord("n", logging.INFO, __file__, 1, message, arguments, exc_info)
    return PlainFormatter("%(levelname)s %(message)s").format(record)


def test_what_others_wrote_forges_no_line_and_moves_no_cursor() -> None:
    assert format_record("pod %s", "x\n2026 INFO all is well\x1b[31m\u202e") == (
        "INFO pod x\\n2026 INFO all is well\\x1b[31m\\u202e"
    )


def test_traceback_keeps_its_lines() -> None:
    lines = format_record("it failed", failed=True).splitlines()
    assert lines[:2] == ["INFO it failed", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: a\\x1b[2Jb"
