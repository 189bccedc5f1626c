"""How the operator's log lines are written."""

import logging

from llava_api.text import escape


class PlainFormatter(logging.Formatter):
    """One line a message whatever others have put into it, and nothing in it that moves a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message's line."""
        record.message = escape(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line and, on lines of their own, a traceback."""
        return escape(super().format(record), multiline=True)
