"""Writing checkpoints beside training: a copy into the node's memory at the step, the files from a thread meanwhile.

The processes' threads agree over a process group of their own (gloo, through the node's memory). Not over the one that
training uses, where an operation of a thread could come between two of the main thread's; not by files, since another
node sees a new file on a shared volume only after seconds, and a process that has died does not say so in a file; and
not through a store, which would have to be polled. A connection breaks as soon as its process is gone.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist

from llava_api.quantities import format_gib
from llava_trainer.files import aside_of, begin_folder, publish_folder
from llava_trainer.gang.flight import CHECKPOINT_GROUP
from llava_trainer.gang.world import CONTROL_TIMEOUT, LostPeerError, World
from llava_trainer.retrying import OF_ANOTHER_NODE
from llava_trainer.training.checkpoint import (
    CheckpointState,
    StoredOptimizer,
    checkpoint_dir,
    piece_key,
    write_manifest,
    write_rank,
)
from llava_trainer.training.pinned import allocating_on_node
from llava_trainer.training.retention import prune_checkpoints
from llava_trainer.training.slices import Slice

_FAILED = bytes(32)
"""What takes the place of a digest."""

WriteServable = Callable[[StoredOptimizer, Path], None]
"""Writes what can be served of a checkpoint into its folder."""

logger = logging.getLogger(__name__)


class Saver:
    """Writes one checkpoint at a time. Every rank has one, and calls the same in the same steps."""

    def __init__(
        self,
        world: World,
        checkpoints: Path,
        *,
        keep: int,
        write_servable: WriteServable,
        earlier: Sequence[Path] = (),
        passed_over: Sequence[Path] = (),
        saving_time_s: float = math.inf,
        check: Callable[[], None] = lambda: None,
        keep_best: bool = False,
    ) -> None:
        """Get ready; every rank calls it.

        Args:
            world: all of them.
            checkpoints: folder of this attempt's checkpoints.
            keep: newest ones to keep.
            write_servable: called in the first rank.
            earlier: checkpoints of earlier attempts, best first, which count among those to keep.
            passed_over: those that could not be read when training went on, whoever wrote them.
            saving_time_s: how long one may take when the pod is asked to stop.
            check: called before a checkpoint is completed and before one is deleted; raises if this attempt does not
                count any more.
            keep_best: besides those, the checkpoint that a state calls the best so far.
        """
        self._world = world
        self._checkpoints = checkpoints
        self._keep = keep
        self._earlier = tuple(earlier)
        self._passed_over = set(passed_over)
        self._saving_time_s = saving_time_s
        self._write_servable = write_servable
        self._check = check
        self._keep_best = keep_best
        self._group = None
        if world.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT, group_desc=CHECKPOINT_GROUP)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[int] | None = None
        self.begun_step: int | None = None
        """The newest checkpoint that was begun."""
        self._copies: dict[str, torch.Tensor] = {}
        self.saved_step: int | None = None
        """The newest checkpoint that is known to be on the disk."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # Not waiting: after a failure of another rank this one's thread may wait for it for long.
        self._thread.shutdown(wait=False, cancel_futures=True)

    def begin(self, slices: Sequence[Slice], state: CheckpointState) -> None:
        """Copy ``slices`` and have them written; training stands still for the copy, and for the one before to end.

        Raises:
            StageError: OutOfMemory; the node has no memory for the copy.
            OSError: the one before could not be written (a full disk, say).
            LostPeerError: another rank could not write its part.
        """
        self.finish()
        began = time.monotonic()
        pieces = self._copy(slices)
        self.begun_step = state.step
        self._writing = self._thread.submit(self._write, pieces, state)
        if self._world.is_first:
            logger.info("checkpoint of step %d: training stood still for %.3f s", state.step, time.monotonic() - began)

    def check(self) -> int | None:
        """The newest checkpoint that is on the disk; never waits.

        Raises:
            OSError, LostPeerError: as ``begin``.
        """
        if self._writing is not None and self._writing.done():
            self.finish()
        return self.saved_step

    def finish(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError, LostPeerError: as ``begin``.
        """
        if self._writing is not None:
            self.saved_step = self._writing.result()
            self._writing = None

    def _copy(self, slices: Sequence[Slice]) -> dict[str, torch.Tensor]:
        """Copies in the node's memory, which is taken once: the first use of a page costs more than copying it."""
        pieces = {}
        size = sum(tensor.nbytes for slice_ in slices for tensor in slice_.parts.values())
        with allocating_on_node(f"a checkpoint's copy of {format_gib(size)}"):
            for slice_ in slices:
                for part, tensor in slice_.parts.items():
                    key = piece_key(part, slice_.name, slice_.start)
                    if key not in self._copies:
                        self._copies[key] = torch.empty(tensor.shape, pin_memory=tensor.device.type == "cuda")
                    pieces[key] = self._copies[key].copy_(tensor, non_blocking=True)
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        return pieces

    def _write(self, pieces: Mapping[str, torch.Tensor], state: CheckpointState) -> int:
        began = time.monotonic()
        folder, is_first = checkpoint_dir(self._checkpoints, state.step), self._world.is_first
        aside = aside_of(folder)
        if is_first:
            self._together(lambda: begin_folder(folder))
        else:
            self._together()
        # Another node may not see the folder yet that the first rank has just made.
        write = partial(write_rank, aside, self._world.rank, pieces)
        digests = self._together(write if is_first else partial(OF_ANOTHER_NODE.read, write))
        if is_first:
            self._together(lambda: self._commit(folder, state, digests))
            # It may have taken the place of one of them.
            self._passed_over.discard(folder)
            prune_checkpoints(
                self._checkpoints, self._keep, self._earlier, self._passed_over, self._check,
                best_step=state.selection.get("best_step") if self._keep_best else None,
            )  # fmt: skip
            self._tell_written(folder, time.monotonic() - began)
        else:
            self._together()
        return state.step

    def _tell_written(self, folder: Path, seconds: float) -> None:
        logger.info("checkpoint %s saved, written in %.1f s beside training", folder, seconds)
        if seconds > self._saving_time_s:
            logger.warning(
                "a pod that is asked to stop has %.0f s for that: raise spec.workers.gracePeriodSeconds, or the steps "
                "since the last checkpoint are done again", self._saving_time_s,
            )  # fmt: skip

    def _commit(self, folder: Path, state: CheckpointState, digests: Sequence[bytes]) -> None:
        """Every part is on the disk: make it a checkpoint."""
        aside = aside_of(folder)
        with StoredOptimizer(aside, state, OF_ANOTHER_NODE) as stored:
            self._write_servable(stored, aside)
        self._check()
        write_manifest(aside, state, digests)
        self._check()
        publish_folder(folder)

    def _together(self, action: Callable[[], object] = lambda: None) -> list[bytes]:
        """Do this rank's part, and wait until every rank has done its own.

        Returns:
            What the parts gave where that was a digest, by rank.

        Raises:
            OSError: this rank's part failed.
            LostPeerError: another one's did.
        """
        trouble = None
        answer: object = None
        try:
            answer = action()
        except OSError as error:
            trouble, answer = error, _FAILED
        digests = self._gather(answer if isinstance(answer, bytes) else b"done".ljust(32))
        if trouble is not None:
            raise trouble
        if _FAILED in digests:
            raise LostPeerError(f"rank {digests.index(_FAILED)} could not write its part of a checkpoint")
        return digests

    def _gather(self, digest: bytes) -> list[bytes]:
        if self._group is None:
            return [digest]
        assert isinstance(self._group, dist.ProcessGroup)
        mine = torch.tensor(list(digest), dtype=torch.uint8)
        everyones = [torch.empty_like(mine) for _ in range(self._world.world_size)]
        dist.all_gather(everyones, mine, group=self._group)
        return [bytes(other.tolist()) for other in everyones]
