"""The train stage: one launcher a pod, and under it one rank a GPU (or one a pod on a CPU). So is align."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from llava_api.base import Strict
from llava_api.failures import Reason
from llava_api.report import StageFailure, TrainNumbers
from llava_api.run_config import RunConfig
from llava_trainer.attempts.finished import read_result
from llava_trainer.files import sha256_folder
from llava_trainer.gang.launcher import Worker, launch, node_rank
from llava_trainer.gang.rendezvous import Patience, Rendezvous
from llava_trainer.gang.signing import make_signer
from llava_trainer.host_cores import count_cores
from llava_trainer.outcome import Interrupted, StageOutput
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import find_last_step, read_numbers

_REMEMBERED_OPERATIONS = "1000"
"""By torch's flight recorder in each rank, for when one of them stands still (``gang.flight``)."""
_ALLOCATOR = "expandable_segments:True,pinned_max_round_threshold_mb:1"
"""Batches of other lengths every step would leave gaps in the GPU's memory; in segments that grow there are none. And
PyTorch rounds memory that the GPU copies to up to a power of two, tensor by tensor: copies of the optimiser for
checkpoints, and what is offloaded, would take half as much again."""


class Outcome(Strict):
    """What the first pod tells the others."""

    numbers: TrainNumbers
    digests: Mapping[str, str] = Field(default_factory=dict)


def run(config: RunConfig, reporter: Reporter) -> StageOutput:
    """Train; see ``llava_trainer.gang.launcher`` and ``llava_trainer.training``.

    Args:
        config: the run configuration.
        reporter: not used: the first rank reports with one of its own.

    Raises:
        StageError: what ended training.
    """
    if config.training.method == "full":
        return run_phase(config, artifact="weights", folder=config.volume.weights_dir)
    return run_phase(config, artifact="adapter", folder=config.volume.adapter_dir)


def run_phase(config: RunConfig, *, artifact: str, folder: Path) -> StageOutput:
    """Train in one of the two phases.

    Args:
        config: the run configuration; its stage says which phase.
        artifact: what training makes.
        folder: where that lies afterwards.

    Raises:
        StageError: what ended training.
    """
    _set_environment(config)
    patience = Patience()
    workers = config.workers
    with Rendezvous(
        workers.rendezvous_host, workers.rendezvous_port, node=node_rank(), num_nodes=workers.num_nodes,
        signer=make_signer(config), patience=patience,
    ) as rendezvous:  # fmt: skip
        try:
            _announce_finished(config, rendezvous)
            rendezvous.await_all()
            if rendezvous.find_result() is None:
                launch(config, rendezvous, patience, _worker(config))
            outcome = _settle(config, rendezvous, artifact, folder)
        except Interrupted:
            rendezvous.report_failure(
                StageFailure(
                    reason=Reason.INTERRUPTED, message=f"training pod {node_rank()} was asked to stop (SIGTERM)"
                )
            )
            raise
    return StageOutput(numbers=outcome.numbers, digests=outcome.digests)


def _worker(config: RunConfig) -> Worker:
    curve = config.volume.history_file(config.run.stage, config.run.attempt)
    return Worker(module="llava_trainer.training.worker", find_step=lambda: find_last_step(curve))


def _set_environment(config: RunConfig) -> None:
    """What the ranks inherit."""
    # DeepSpeed would look for accelerators that the run was not given.
    os.environ.setdefault("DS_ACCELERATOR", config.workers.device)
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        os.environ["PYTORCH_ALLOC_CONF"] = _ALLOCATOR
    if not os.environ.keys() & {"TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"}:
        # torch's own default has been nothing and 2,000 operations; a dump of so many is half a megabyte.
        os.environ["TORCH_FR_BUFFER_SIZE"] = _REMEMBERED_OPERATIONS
    threads = _threads_a_rank(config, count_cores())
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def _threads_a_rank(config: RunConfig, cores: int) -> int | None:
    """Threads that torch computes with on the CPU in each rank; None leaves it to torch.

    Args:
        config: the run configuration.
        cores: of this pod.
    """
    ranks = config.workers.processes_per_node
    if config.training.zero.offload.optimizer:
        # The optimiser steps there: by all cores of the pod, and torch would take the node's in each rank.
        return max(1, cores // ranks)
    # As torchrun does: ranks that all take every core hold each other up.
    return 1 if ranks > 1 else None


def _announce_finished(config: RunConfig, rendezvous: Rendezvous) -> None:
    """Before anybody waits for this pod: tell the others if an earlier attempt had finished, so that nobody trains."""
    finished = read_result(config) if node_rank() == 0 else None
    if finished is not None:
        numbers = finished.align or finished.train
        assert numbers is not None, finished.stage
        rendezvous.announce_result(Outcome(numbers=numbers, digests=finished.digests).model_dump_json())


def _settle(config: RunConfig, rendezvous: Rendezvous, artifact: str, folder: Path) -> Outcome:
    """What came out: the first pod looks, the others are told."""
    if node_rank() != 0:
        return Outcome.model_validate_json(rendezvous.await_result())
    if (shared := rendezvous.find_result()) is not None:
        return Outcome.model_validate_json(shared)
    numbers = read_numbers(config)
    outcome = Outcome(numbers=numbers, digests={artifact: sha256_folder(folder)})
    rendezvous.announce_result(outcome.model_dump_json())
    return outcome
