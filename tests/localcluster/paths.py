"""Where things live: built tools and images in the user's cache, running instances under /var/lib.

The two should be on one file system: image layers are then hard-linked into a node instead of copied.
"""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL_SOURCES = Path(__file__).resolve().parent / "tools"
DEFAULT_STATE_ROOT = Path("/var/lib/llava-localcluster")
# Wiped by a reboot, like the network interfaces whose numbers are claimed here.
RUN_ROOT = Path("/run/llava-localcluster")


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/llava-finetune-operator`, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "llava-finetune-operator"
