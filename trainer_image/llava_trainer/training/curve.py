"""What training leaves of its course: the curve, one JSON object a logged step, and the numbers at its end.

Imports neither torch nor DeepSpeed: the launcher reads it too.
"""

import json
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Self, TypedDict, Unpack

from pydantic import Field, TypeAdapter, ValidationError

from llava_api.constants import StageName
from llava_api.report import LOSSES_KEPT, MAX_SIZE, TrainNumbers
from llava_api.run_config import RunConfig
from llava_api.volume import RunVolume
from llava_trainer.files import make_folder, write_whole
from llava_trainer.gang.failures import ranks_dir

MAX_ANSWER_CHARS = 2000
"""Of an answer that a validation has got."""

_Count = Annotated[int, Field(ge=0, le=MAX_SIZE)]
_Answer = Annotated[str, Field(max_length=MAX_ANSWER_CHARS)]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One optimiser step."""

    step: _Count
    """Counted from 1."""
    epoch: float
    loss: float
    """Per supervised token, over the whole global batch."""
    learning_rate: float
    """Of the adapter."""
    grad_norm: float
    """Before clipping."""
    tokens: _Count
    """Real (not padding) tokens of the batch."""
    samples_per_second: float
    tokens_per_second: float
    time_s: float | None = None
    """When the step ended, in seconds since 1970; None where an older image has written it."""
    data_wait_ratio: float | None = None
    """Fraction of the step's time in which the rank that waited longest waited for its batch."""
    mfu: float | None = None
    """Model FLOPs utilisation of the step (``utilisation``); None without a GPU whose peak is known."""
    peak_gpu_memory_bytes: _Count | None = None
    """Most memory that torch had reserved on any rank's GPU before this step; None without GPUs."""
    eta_seconds: float | None = None
    """Estimated seconds to training's end, validations included; None while there was no estimate."""
    validation_loss: float | None = None
    """Held-out loss per supervised token after this step; None where no validation followed it."""
    validation_exact: float | None = None
    """Fraction of held-out answers that were exact then."""
    validation_seconds: float | None = None
    """How long training stood still for it."""
    validation_answers: tuple[_Answer, ...] | None = None
    """What the model answered to the questions of ``held_out_answers`` then; None where none is asked."""


class SeenFields(TypedDict, total=False):
    """What a validation adds to a point."""

    validation_loss: float
    validation_exact: float | None
    validation_seconds: float
    validation_answers: tuple[str, ...] | None


_POINT = TypeAdapter(CurvePoint)


class Curve:
    """Appends to the curve. After a restart it goes on behind the step that training resumes from.

    Each line is handed to the kernel as it is written: a process killed with SIGKILL loses none. A line that is written
    anew is at least as long as it was, and goes there at once. Leaving the context closes the file.
    """

    def __init__(self, file: Path, *, resumed_from: Path | None = None, resumed_step: int = 0) -> None:
        """Open ``file``.

        Args:
            file: the curve of this attempt.
            resumed_from: curve of the attempt whose checkpoint is resumed, which may be ``file`` itself.
            resumed_step: last step to take over from there; what was logged beyond it is computed again.
        """
        carried = [] if resumed_from is None else [e for e in read_curve(resumed_from) if e.step <= resumed_step]
        self._losses: list[float] = []
        self._tokens = 0
        self._last: CurvePoint | None = None
        self._validation_s: float | None = None
        self._last_begin = 0
        make_folder(file.parent)
        self._stream = file.open("wb", buffering=0)
        for entry in carried:
            self.append(entry)

    @property
    def recent_losses(self) -> tuple[float, ...]:
        """Losses of the last logged steps, oldest first."""
        return tuple(self._losses[-LOSSES_KEPT:])

    @property
    def tokens(self) -> int:
        """Real tokens trained on so far."""
        return self._tokens

    @property
    def last(self) -> CurvePoint | None:
        """The newest point; None before the first."""
        return self._last

    @property
    def last_validation_s(self) -> float | None:
        """How long the newest validation took; None before the first."""
        return self._validation_s

    def append(self, entry: CurvePoint) -> None:
        """Log one step."""
        self._losses.append(entry.loss)
        self._tokens += entry.tokens
        self._last, self._last_begin = entry, self._stream.tell()
        self._validation_s = entry.validation_seconds or self._validation_s
        self._stream.write(_line_of(entry))

    def add_validation(self, step: int, **seen: Unpack[SeenFields]) -> None:
        """Tell in the newest point's line what a validation after ``step`` steps has shown.

        Nothing happens where that is not the newest point: a damaged curve was taken over as far as it is one.
        """
        if self._last is None or self._last.step != step:
            return
        size = self._stream.tell() - self._last_begin
        self._last = replace(self._last, **seen)
        self._validation_s = self._last.validation_seconds or self._validation_s
        self._stream.seek(self._last_begin)
        self._stream.write(_line_of(self._last).removesuffix(b"\n").ljust(size - 1) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _line_of(entry: CurvePoint) -> bytes:
    return json.dumps(asdict(entry)).encode() + b"\n"


def read_curve(file: Path) -> list[CurvePoint]:
    """Read a curve, as far as it is one."""
    return list(stream_curve(file))


def stream_curve(file: Path) -> Generator[CurvePoint]:
    """The same, point by point. No file is a curve without points."""
    if file.is_file():
        with file.open("rb") as stream:
            yield from read_points(stream)


def read_points(lines: Iterable[bytes]) -> Iterator[CurvePoint]:
    """The points of a curve's lines, up to one that is none: it was cut off when training was killed, mostly.

    What a newer image tells of a step besides is passed over.
    """
    for line in lines:
        try:
            yield _POINT.validate_json(line)
        except ValidationError:
            return


def find_curve(volume: RunVolume) -> list[CurvePoint]:
    """Curve of the training attempt that made what was merged.

    A run that only aligns shows alignment's. Empty without any.
    """
    for stage in (StageName.TRAIN, StageName.ALIGN):
        attempt = (volume.results or {}).get(stage)
        entries = read_curve(volume.history_file(stage, attempt)) if attempt is not None else []
        if entries:
            return entries
    return []


def find_last_step(file: Path) -> int | None:
    """The last step of a curve; None if there is none, or it cannot be read."""
    try:
        entries = read_curve(file)
    except OSError:
        # Asked for beside a failure, of which a damaged curve must not take the place.
        return None
    return entries[-1].step if entries else None


def write_numbers(config: RunConfig, numbers: TrainNumbers) -> None:
    """Record what training reached; the first rank's part."""
    write_whole(_numbers_file(config), numbers.model_dump_json())


def read_numbers(config: RunConfig) -> TrainNumbers:
    """What training reached."""
    return TrainNumbers.model_validate_json(_numbers_file(config).read_bytes())


def _numbers_file(config: RunConfig) -> Path:
    return ranks_dir(config) / "numbers.json"
