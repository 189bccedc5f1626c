"""Micro-batches of one rank: samples read, encoded and laid side by side, ahead of the loop."""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch

from llava_trainer.data.collate import Batch, Item, collate, collate_packed
from llava_trainer.data.encode import IGNORED, encode
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample
from llava_trainer.data.template import Template
from llava_trainer.model.objective import find_image_places
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.pinned import allocating_on_node
from llava_trainer.training.rank_batches import Rows

_STEPS_AHEAD = 1
"""Steps that are loaded while one is learned from. Loading takes a small part of a step, and more would take memory: a
image of 336 px has 1.4 MB."""
_MAX_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What the model is called with once."""

    tensors: Batch
    num_supervised: int
    """Tokens that are learned."""
    num_tokens: int
    """Real (not padding) tokens."""
    supervised_each: tuple[int, ...] = ()
    """Tokens that are learned of each sample, in the order of the rows."""

    def to(self, device: torch.device) -> Batch:
        """What the model is called with on ``device``; copies of pinned memory are not waited for."""
        return _map(self.tensors, lambda tensor: tensor.to(device, non_blocking=True))


class Samples(Protocol):
    """Samples by their number."""

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True, kw_only=True)
class RowLoader:
    """Lays samples of a file side by side, as the model is fed."""

    samples: Samples
    processor: Processor
    images: ImageFolder
    max_length: int
    template: Template = "v1"
    packing: bool = False
    dtype: torch.dtype = torch.float32
    """Images' number format: the model's. Converted here: what is converted on the way to a GPU is not copied from
    pinned memory."""
    pinned: bool = False
    """Whether to load into memory that a GPU can copy from by itself."""

    def load(self, rows: Rows) -> MicroBatch:
        """A micro-batch of these samples.

        Raises:
            ImageError, ImageCutError, OSError: a sample cannot be loaded any more; prepare could.
        """
        items = [[self._load_sample(self.samples[index]) for index in row] for row in rows]
        return lay_out(
            items, pad_token_id=self.processor.pad_token_id, image_token_id=self.processor.image_token_id,
            packing=self.packing, dtype=self.dtype, pinned=self.pinned,
        )  # fmt: skip

    def _load_sample(self, sample: Sample) -> Item:
        pixels = [pixel_values(open_image(self.images.find(name)), self.processor) for name in sample.images]
        encoded = encode(sample, self.processor, self.max_length, self.template)
        return encoded, np.stack(pixels) if pixels else None


class BatchLoader:
    """Loads the micro-batches of a step; those of the next steps are loaded in threads meanwhile.

    Threads, not processes: reading, decoding and resizing images let go of Python's lock, and nothing has to be
    copied from one rank into another.
    """

    def __init__(
        self,
        samples: Samples,
        processor: Processor,
        *,
        images: ImageFolder,
        max_length: int,
        plan: BatchPlan,
        rank: int,
        template: Template = "v1",
        dtype: torch.dtype = torch.float32,
        pinned: bool = False,
    ) -> None:
        self._rows = RowLoader(
            samples=samples, processor=processor, images=images, max_length=max_length, template=template,
            packing=plan.packing, dtype=dtype, pinned=pinned,
        )  # fmt: skip
        self._plan = plan
        self._rank = rank
        self._threads = ThreadPoolExecutor(
            max_workers=min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="batches"
        )
        self._ahead: deque[tuple[int, list[Future[MicroBatch]]]] = deque()
        self.waited_s = 0.0
        """Seconds that ``load`` has taken so far: what was not there in time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def load(self, step: int) -> list[MicroBatch]:
        """Micro-batches of ``step``, in order.

        Raises:
            ImageError, ImageCutError, OSError: a sample cannot be loaded any more; prepare could.
        """
        began = time.perf_counter()
        self._look_ahead(step)
        _, futures = self._ahead.popleft()
        micro_batches = [future.result() for future in futures]
        self.waited_s += time.perf_counter() - began
        return micro_batches

    def load_rows(self, rows: Rows) -> MicroBatch:
        """A micro-batch of these samples.

        Raises:
            ImageError, ImageCutError, OSError: as ``load``.
        """
        return self._rows.load(rows)

    def _look_ahead(self, step: int) -> None:
        """Have ``step`` and those that follow it loaded or being loaded, and no others."""
        while self._ahead and self._ahead[0][0] != step:
            for future in self._ahead.popleft()[1]:
                future.cancel()
        last = min(step + _STEPS_AHEAD, self._plan.total_steps - 1)
        for wanted in range(self._ahead[-1][0] + 1 if self._ahead else step, last + 1):
            rank_batch = self._plan.rank_batch(wanted, self._rank)
            self._ahead.append((wanted, [self._threads.submit(self.load_rows, rows) for rows in rank_batch]))


def lay_out(
    rows: Sequence[Sequence[Item]],
    *,
    pad_token_id: int,
    image_token_id: int,
    packing: bool,
    dtype: torch.dtype = torch.float32,
    pinned: bool = False,
) -> MicroBatch:
    """A micro-batch of samples that are loaded: all that the model is called with, found out before a GPU is.

    Args:
        rows: samples of each row, several only with ``packing``; without any row nothing is learned.
        pad_token_id: what rows are filled up with.
        image_token_id: what stands for images.
        packing: whether rows are packed.
        dtype: images' number format.
        pinned: whether to put it where a GPU copies from by itself.

    Raises:
        StageError: OutOfMemory; the node has no memory to pin.
    """
    if not rows:
        tensors = _nothing(pad_token_id)
    elif packing:
        tensors = collate_packed(rows, pad_token_id)
    else:
        tensors = collate([item for row in rows for item in row], pad_token_id)
    tensors["image_places"] = find_image_places(tensor_of(tensors, "input_ids"), image_token_id)
    finished = _map(tensors, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    if pinned:
        with allocating_on_node("a batch that is loaded ahead"):
            finished = _map(finished, torch.Tensor.pin_memory)
    return MicroBatch(
        tensors=finished,
        num_supervised=tensor_of(tensors, "predicting").numel(),
        num_tokens=sum(encoded.num_tokens for row in rows for encoded, _ in row),
        supervised_each=tuple(encoded.num_supervised for row in rows for encoded, _ in row),
    )


def tensor_of(batch: Batch, name: str) -> torch.Tensor:
    """The tensor of this name, which every batch has."""
    tensor = batch[name]
    assert isinstance(tensor, torch.Tensor), name
    return tensor


def _map(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The batch with its tensors changed, and all else as it is."""
    return {name: change(value) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _nothing(pad_token_id: int) -> Batch:
    """One token that nothing is learned from: an empty share of the last batch of an epoch."""
    return {
        "input_ids": torch.tensor([[pad_token_id]]),
        "labels": torch.tensor([[IGNORED]]),
        "pixel_values": None,
        "predicting": torch.zeros(0, dtype=torch.int64),
    }
