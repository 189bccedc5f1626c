"""The one error by which chatting says what is wrong."""


class ChatError(Exception):
    """What was asked for cannot be done; the message says why, and what would."""
