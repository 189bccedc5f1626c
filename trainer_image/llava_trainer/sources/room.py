"""Whether something fits on the run's volume: asked before it is fetched or unpacked."""

from pathlib import Path

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.files import find_free_bytes

SPARE_BYTES = 64 << 20
"""Room that a download leaves on the volume for logs and reports."""


def check_space(volume: Path, needed_bytes: int, what: str) -> None:
    """Make sure that something fits on the run's volume, as far as that tells.

    Raises:
        StageError: StorageFull, with what is needed and what is there.
    """
    free = find_free_bytes(volume)
    if free is not None and needed_bytes + SPARE_BYTES > free and needed_bytes:
        raise StageError(
            Reason.STORAGE_FULL,
            f"{what} needs {needed_bytes / 1e9:,.2f} GB more, but the run's volume has {free / 1e9:,.2f} GB free: "
            "raise spec.storage.size",
        )
