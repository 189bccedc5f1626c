"""Micro-batches of one process: samples read, encoded and laid side by side, one step ahead of the loop."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from llava_trainer.data.collate import Batch, collate
from llava_trainer.data.encode import IGNORED, Encoded, encode
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processing import Processing
from llava_trainer.data.samples import Sample
from llava_trainer.training.plan import Plan


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What the model is called with once."""

    tensors: Batch
    num_supervised: int
    """Tokens that are learned."""
    num_tokens: int
    """Real (not padding) tokens."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The tensors on ``device``, pictures in the model's number format."""
        return {
            name: None if tensor is None else tensor.to(device, dtype if tensor.is_floating_point() else None)
            for name, tensor in self.tensors.items()
        }


class BatchLoader:
    """Loads the micro-batches of a step; the next step's are loaded in a thread meanwhile."""

    def __init__(
        self,
        samples: Sequence[Sample],
        processing: Processing,
        *,
        images: Path,
        max_length: int,
        plan: Plan,
        rank: int,
    ) -> None:
        self._samples = samples
        self._processing = processing
        self._images = images
        self._max_length = max_length
        self._plan = plan
        self._rank = rank
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[list[MicroBatch]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def load(self, step: int) -> list[MicroBatch]:
        """Micro-batches of ``step``, in order.

        Raises:
            PictureError, PictureCutError, OSError: a sample cannot be loaded any more; prepare could.
        """
        loaded = self._ahead[1].result() if self._ahead and self._ahead[0] == step else self._load(step)
        following = step + 1
        if following < self._plan.total_steps:
            self._ahead = (following, self._thread.submit(self._load, following))
        return loaded

    def _load(self, step: int) -> list[MicroBatch]:
        return [self._load_one(indices) for indices in self._plan.share(step, self._rank)]

    def _load_one(self, indices: Sequence[int]) -> MicroBatch:
        if not indices:
            return _nothing(self._processing.pad_token_id)
        items = [self._load_sample(self._samples[index]) for index in indices]
        encoded = [sample for sample, _ in items]
        return MicroBatch(
            tensors=collate(items, self._processing.pad_token_id),
            num_supervised=sum(sample.num_supervised for sample in encoded),
            num_tokens=sum(sample.num_tokens for sample in encoded),
        )

    def _load_sample(self, sample: Sample) -> tuple[Encoded, np.ndarray | None]:
        pixels = [pixel_values(open_image(self._images / name), self._processing) for name in sample.images]
        return encode(sample, self._processing, self._max_length), np.stack(pixels) if pixels else None


def _nothing(pad_token_id: int) -> MicroBatch:
    """One token that nothing is learned from: an empty share of the last batch of an epoch."""
    tensors: Batch = {
        "input_ids": torch.tensor([[pad_token_id]]),
        # Not masked: attention over nothing at all is not a number.
        "attention_mask": torch.ones(1, 1, dtype=torch.int64),
        "labels": torch.tensor([[IGNORED]]),
        "pixel_values": None,
    }
    return MicroBatch(tensors=tensors, num_supervised=0, num_tokens=0)
