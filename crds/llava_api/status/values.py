"""The values of which a status consists: instants, texts, counts.

Instants are RFC 3339 strings in UTC with seconds, as Kubernetes writes them.
"""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

FIRST_YEAR, LAST_YEAR = 1970, 9000


def _check_instant(text: str) -> str:
    # The API server's date-time lets through what is none: 30 February, the year 0, an instant without a zone.
    try:
        instant = datetime.fromisoformat(text)
        # Others are nobody's clock's, and calculating with them may go beyond what can be held.
        if instant.tzinfo is not None and FIRST_YEAR <= instant.astimezone(UTC).year <= LAST_YEAR:
            return text
    except (ValueError, OverflowError):
        pass
    raise ValueError("is no instant as Kubernetes writes it, like 2026-11-01T12:00:00Z")


Time = Annotated[
    str,
    AfterValidator(_check_instant),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 64}),
]
Short = Annotated[str, Field(max_length=256)]
MAX_TEXT = 4096
"""Characters of the longest text in a status; the API server refuses a status with a longer one."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Count = Annotated[int, Field(ge=0, le=2**53, json_schema_extra={"format": "int64"})]
