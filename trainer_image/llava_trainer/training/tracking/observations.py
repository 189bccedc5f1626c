"""What trackers are told of a step: names and values. Pure."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llava_trainer.training.curve import CurvePoint

NAMES: Mapping[str, str] = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/gradient_norm",
    "epoch": "train/epoch",
    "tokens_per_second": "throughput/tokens_per_second",
    "samples_per_second": "throughput/samples_per_second",
    "data_wait_ratio": "throughput/data_wait_ratio",
    "mfu": "throughput/mfu",
    "peak_gpu_memory_bytes": "memory/peak_gpu_bytes",
    "validation_loss": "validation/loss",
    "validation_exact": "validation/exact_ratio",
}
"""Name with trackers of each field of the curve that they are told; these names stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One value of one name after one step."""

    name: str
    step: int
    value: float
    """Finite."""
    time_s: float
    """When it was seen, in seconds since 1970."""


def observe(point: CurvePoint, now_s: float) -> Iterator[Observation]:
    """What is known of a step. Values that are not finite are left out: some trackers take none.

    Args:
        point: of the curve.
        now_s: stands for the time of a point that tells none, which an older image has written.
    """
    for field, name in NAMES.items():
        value = getattr(point, field)
        if value is not None and math.isfinite(value):
            time_s = now_s if point.time_s is None else point.time_s
            yield Observation(name=name, step=point.step, value=float(value), time_s=time_s)
