"""The train stage: one launcher a pod, and under it one process a GPU (or one a pod on a CPU)."""

import os
from collections.abc import Mapping

from pydantic import Field

from llava_api.base import Strict
from llava_api.failures import Reason
from llava_api.report import StageFailure, TrainNumbers
from llava_api.run_config import RunConfig
from llava_trainer.files import sha256_folder
from llava_trainer.launcher import launch, node_rank
from llava_trainer.outcome import Interrupted, StageOutput
from llava_trainer.reporting import Reporter
from llava_trainer.training.meeting import Meeting, Patience
from llava_trainer.training.ranks import numbers_file


class Outcome(Strict):
    """What the first pod tells the others."""

    numbers: TrainNumbers
    digests: Mapping[str, str] = Field(default_factory=dict)


def run(config: RunConfig, reporter: Reporter) -> StageOutput:
    """Train; see ``llava_trainer.launcher`` and ``llava_trainer.training``.

    Args:
        config: the run configuration.
        reporter: not used: the first training process reports with one of its own.

    Raises:
        StageError: what ended training.
    """
    _set_environment(config)
    patience = Patience()
    workers = config.workers
    with Meeting(
        workers.rendezvous_host, workers.rendezvous_port, node=node_rank(), num_nodes=workers.num_nodes,
        patience=patience,
    ) as meeting:  # fmt: skip
        try:
            meeting.await_all()
            launch(config, meeting, patience)
            outcome = _settle(config, meeting)
        except Interrupted:
            meeting.report_failure(
                StageFailure(
                    reason=Reason.INTERRUPTED, message=f"training pod {node_rank()} was asked to stop (SIGTERM)"
                )
            )
            raise
    return StageOutput(numbers=outcome.numbers, digests=outcome.digests)


def _set_environment(config: RunConfig) -> None:
    """What the training processes inherit."""
    # DeepSpeed would look for accelerators that the run was not given.
    os.environ.setdefault("DS_ACCELERATOR", config.workers.device)
    if config.workers.processes_per_node > 1:
        # As torchrun does: processes that all take every core hold each other up.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _settle(config: RunConfig, meeting: Meeting) -> Outcome:
    """What came out: the first pod looks, the others are told."""
    if node_rank() != 0:
        return Outcome.model_validate_json(meeting.await_result())
    outcome = _collect(config)
    meeting.share_result(outcome.model_dump_json())
    return outcome


def _collect(config: RunConfig) -> Outcome:
    numbers = TrainNumbers.model_validate_json(numbers_file(config).read_bytes())
    return Outcome(numbers=numbers, digests={"adapter": sha256_folder(config.volume.adapter_dir)})
