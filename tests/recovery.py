"""How long runs took to recover from faults: a line for each, shown at the end of the test session."""

from dataclasses import dataclass, replace
from typing import Self

PROPERTY = "recovery"
"""Name of the property of a test's report that holds a line of the table."""
HEADER = f"{'fault':<40}{'detected':>12}{'pods gone':>12}{'first step':>12}"


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Seconds from a fault, all counted from the same instant."""

    fault: str
    detected_s: float
    """The status tells that the attempt is over, and why."""
    gone_s: float
    """No pod of it is waited for any more."""
    stepped_s: float
    """The next attempt has done its first step."""

    def since_earlier(self, fault: str, by_s: float) -> Self:
        """The same counted from an earlier instant, under another name."""
        return replace(
            self, fault=fault, detected_s=self.detected_s + by_s, gone_s=self.gone_s + by_s,
            stepped_s=self.stepped_s + by_s,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.fault:<40}{self.detected_s:>12.1f}{self.gone_s:>12.1f}{self.stepped_s:>12.1f}"
