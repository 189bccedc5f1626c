"""Micro-batches of one process: samples read, encoded and laid side by side, one step ahead of the loop."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from llava_trainer.data.encode import Encoded, encode
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processing import Processing
from llava_trainer.data.samples import Sample
from llava_trainer.model.objective import IGNORED
from llava_trainer.training.plan import Plan


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What the model is called with once."""

    input_ids: torch.Tensor
    """(batch, length), int64, padded on the right."""
    attention_mask: torch.Tensor
    """(batch, length), int64, 0 on padding."""
    labels: torch.Tensor
    """(batch, length), int64, not shifted; IGNORED where nothing is learned."""
    pixel_values: torch.Tensor | None
    """(pictures, 3, height, width), fp32; None without pictures."""

    @property
    def num_supervised(self) -> int:
        """Tokens that are learned. The first position predicts none of them: there is nothing before it."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        """Real (not padding) tokens."""
        return int(self.attention_mask.sum())

    def to(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
        """The tensors by name, on ``device``, pictures in the model's number format."""
        pixels = self.pixel_values
        return {
            "input_ids": self.input_ids.to(device),
            "attention_mask": self.attention_mask.to(device),
            "labels": self.labels.to(device),
            "pixel_values": None if pixels is None else pixels.to(device, dtype),
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
        samples = [self._samples[index] for index in indices]
        encoded = [encode(sample, self._processing, self._max_length) for sample in samples]
        pixels = [
            torch.from_numpy(pixel_values(open_image(self._images / name), self._processing))
            for sample in samples
            for name in sample.images
        ]
        return collate(encoded, pixels, self._processing.pad_token_id)


def collate(encoded: Sequence[Encoded], pixels: Sequence[torch.Tensor], pad_token_id: int) -> MicroBatch:
    """Lay samples side by side, padded on the right. No samples give one padding token that counts for nothing."""
    length = max((sample.num_tokens for sample in encoded), default=1)
    shape = (max(len(encoded), 1), length)
    input_ids = torch.full(shape, pad_token_id)
    labels = torch.full(shape, IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for row, sample in enumerate(encoded):
        input_ids[row, : sample.num_tokens] = torch.tensor(sample.input_ids)
        labels[row, : sample.num_tokens] = torch.tensor(sample.labels)
        attention_mask[row, : sample.num_tokens] = 1
    return MicroBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        pixel_values=torch.stack(list(pixels)) if pixels else None,
    )
