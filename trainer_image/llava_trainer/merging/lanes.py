"""Forward passes that stand still before each block of a model, so that one block after another need be in memory.

What is run is the model's own ``forward``, from beginning to end: each pass has a thread of its own, which a hook stops
before a block until its weights are there. One of the threads runs at a time.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Batch = Mapping[str, torch.Tensor]
"""Keyword arguments of a forward pass: input_ids, attention_mask and, with images, pixel_values."""


class _EndedError(Exception):
    """Nobody waits for the pass any more."""


class _Lane:
    """One pass. ``step`` and ``end`` are called by who lets it run, all else happens in its own thread."""

    def __init__(self) -> None:
        self.stands_before: nn.Module | None = None
        self._may_go = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self._is_given_up = False

    def run(self, model: nn.Module, arguments: Mapping[str, Any]) -> torch.Tensor:
        try:
            self._await_turn()
            with torch.inference_mode():
                logits: torch.Tensor = model(**arguments).logits
                return logits
        finally:
            self.stands_before = None
            self._stands.release()

    def arrive(self, block: nn.Module) -> None:
        self.stands_before = block
        self._stands.release()
        self._await_turn()

    def step(self) -> None:
        """Let it run until it stands before the next block, or has ended."""
        self._may_go.release()
        self._stands.acquire()

    def give_up(self) -> None:
        """Have it end where it stands, or before the next block."""
        self._is_given_up = True
        self._may_go.release()

    def _await_turn(self) -> None:
        self._may_go.acquire()
        if self._is_given_up:
            raise _EndedError


class Lanes:
    """The passes of one model over several batches; see ``open_lanes``."""

    def __init__(self, lanes: Sequence[_Lane], passes: Sequence[Future[torch.Tensor]]) -> None:
        self._lanes, self._passes = lanes, passes

    def run(self, block: nn.Module) -> None:
        """Let every pass that stands before ``block``, whose weights are there, go through it to the next one.

        Raises:
            Exception: whatever the model raised.
        """
        for lane, future in zip(self._lanes, self._passes, strict=True):
            if lane.stands_before is block:
                lane.step()
                if lane.stands_before is None:
                    future.result()

    @property
    def logits(self) -> list[torch.Tensor]:
        """What each pass has given, (rows, positions, vocabulary); all have gone through their last block."""
        waiting = [type(lane.stands_before).__name__ for lane in self._lanes if lane.stands_before is not None]
        assert not waiting, f"passes stand before {waiting[0]}, whose turn is over: blocks run in another order"
        return [future.result() for future in self._passes]


@contextmanager
def open_lanes(
    model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Batch], positions: Sequence[torch.Tensor]
) -> Iterator[Lanes]:
    """Begin a pass over each batch, up to its first block.

    Args:
        model: a LLaVA, or PEFT's around one, in evaluation mode; its weights may be missing until a block's turn.
        blocks: all modules with weights that it runs.
        batches: what to run it on.
        positions: of each batch, the positions whose logits are asked for.
    """
    lanes = [_Lane() for _ in batches]
    # A thread runs one lane from beginning to end.
    by_thread: dict[int, _Lane] = {}

    def enter(lane: _Lane, arguments: Mapping[str, Any]) -> torch.Tensor:
        by_thread[threading.get_ident()] = lane
        return lane.run(model, arguments)

    def stand(block: nn.Module, _: Any) -> None:
        lane = by_thread.get(threading.get_ident())
        if lane is not None:
            lane.arrive(block)

    hooks = [block.register_forward_pre_hook(stand) for block in blocks]
    with ThreadPoolExecutor(max_workers=len(batches), thread_name_prefix="pass") as threads:
        passes = [
            threads.submit(enter, lane, {**batch, "use_cache": False, "logits_to_keep": kept})
            for lane, batch, kept in zip(lanes, batches, positions, strict=True)
        ]
        try:
            for lane, future in zip(lanes, passes, strict=True):
                lane.step()
                if lane.stands_before is None:
                    future.result()
            yield Lanes(lanes, passes)
        finally:
            for lane in lanes:
                lane.give_up()
            for hook in hooks:
                hook.remove()
