"""The training curve: one JSON object a logged step, in a file that outlives the pod."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from llava_api.report import LOSSES_KEPT
from llava_trainer.files import make_folder


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimiser step."""

    step: int
    """Counted from 1."""
    epoch: float
    loss: float
    """Per supervised token, over the whole global batch."""
    learning_rate: float
    """Of the adapter."""
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Real (not padding) tokens of the batch."""
    samples_per_second: float
    tokens_per_second: float


class History:
    """Appends to the curve. After a restart it goes on behind the step that training resumes from.

    Each line is handed to the kernel as it is written: a process killed with SIGKILL loses none. Leaving the context
    closes the file.
    """

    def __init__(self, file: Path, *, resumed_from: Path | None = None, resumed_step: int = 0) -> None:
        """Open ``file``.

        Args:
            file: the curve of this attempt.
            resumed_from: curve of the attempt whose checkpoint is resumed, which may be ``file`` itself.
            resumed_step: last step to take over from there; what was logged beyond it is computed again.
        """
        carried = [] if resumed_from is None else [e for e in read_entries(resumed_from) if e.step <= resumed_step]
        self._losses = [entry.loss for entry in carried]
        self._tokens = sum(entry.tokens for entry in carried)
        make_folder(file.parent)
        self._stream = file.open("w", encoding="utf-8")
        for entry in carried:
            self._write(entry)

    @property
    def recent_losses(self) -> tuple[float, ...]:
        """Losses of the last logged steps, oldest first."""
        return tuple(self._losses[-LOSSES_KEPT:])

    @property
    def tokens(self) -> int:
        """Real tokens trained on so far."""
        return self._tokens

    def append(self, entry: Entry) -> None:
        """Log one step."""
        self._losses.append(entry.loss)
        self._tokens += entry.tokens
        self._write(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _write(self, entry: Entry) -> None:
        self._stream.write(json.dumps(asdict(entry)) + "\n")
        self._stream.flush()


def read_entries(file: Path) -> list[Entry]:
    """Read a curve; a last line that was cut off when training was killed is left out."""
    if not file.is_file():
        return []
    entries = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            fields = json.loads(line)
        except ValueError:
            break
        entries.append(Entry(**fields))
    return entries
