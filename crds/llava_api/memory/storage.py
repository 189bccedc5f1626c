"""What training and merging put on the run's volume, beyond what prepare has put there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llava_api.constants import TRAINING_STAGES, StageName
from llava_api.memory.demand import Prepared, num_steps, workload_of
from llava_api.memory.parameters import count_parameters
from llava_api.memory.states import MOMENTS, count_trained
from llava_api.memory.workload import FLOAT, Workload
from llava_api.model_facts import ModelFacts
from llava_api.spec import Spec
from llava_api.stages import stages_of

WRITTEN_BYTES_PER_S = 125 << 20
"""What a volume is assumed to take: the throughput of a gp3 volume of AWS that nobody has paid more for. Training logs
what it measures."""
RESERVED_S = 10
"""Seconds of the grace period that are kept for what comes after a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class StoragePlan:
    """Bytes on the run's volume."""

    checkpoint: int
    """One checkpoint of the last phase."""
    checkpoints: int
    """All of that phase that lie there at a time: the newest ``keep``, the best where validation selects, and the one
    that is being written."""
    largest_checkpoint: int
    """Of any phase."""
    total: int
    """The most that lies there at any time of what training and merging make, in whatever attempt."""

    @property
    def saving_s(self) -> int:
        """Seconds that a checkpoint is expected to take from the request to stop until it is on the volume."""
        return math.ceil(self.largest_checkpoint / WRITTEN_BYTES_PER_S)


def plan_storage(spec: Spec, model: ModelFacts, samples: Mapping[StageName, int]) -> StoragePlan:
    """Follow a run through its stages: checkpoints stay when their stage has ended, and results come beside them.

    An attempt may find a result of an earlier one that is damaged or not finished, which stays until its own is whole:
    so each stage has room for two. Checkpoints of earlier ones make room as it saves its own: they count as its own.

    Args:
        spec: of the run.
        model: the model's shape.
        samples: how many each training stage learns from.
    """
    lying = total = checkpoint = checkpoints = largest = 0
    for stage in (stage for stage in stages_of(spec) if stage in TRAINING_STAGES):
        work = workload_of(spec, stage, model, Prepared())
        trained = count_trained(model, work)
        saved, keep = _count_checkpoints(spec, stage, samples[stage])
        checkpoint = _checkpoint_bytes(trained, work)
        largest = max(largest, checkpoint)
        checkpoints = min(saved, keep + 1) * checkpoint
        result = trained * work.number_bytes
        kept = min(saved, keep) * checkpoint
        total = max(total, lying + result + max(checkpoints, kept + result))
        lying += kept + result
    # Every run ends with the whole model.
    merged = count_parameters(model).model * (FLOAT if spec.merge.dtype == "float32" else 2)
    total = max(total, lying + 2 * merged)
    return StoragePlan(checkpoint=checkpoint, checkpoints=checkpoints, largest_checkpoint=largest, total=total)


def _count_checkpoints(spec: Spec, stage: StageName, num_samples: int) -> tuple[int, int]:
    """How many are made at most, and how many of them stay."""
    training = spec.training
    # Instead of one after the last step there is the result.
    before_last = max(0, num_steps(spec, stage, num_samples) - 1)
    saved, keep = before_last // training.checkpoint.every_steps, training.checkpoint.keep
    if stage is StageName.TRAIN and training.keep_best and training.validation:
        # The best one stays whenever it was made, and any validation may find a better one.
        return saved + before_last // training.validation.every_steps, keep + 1
    return saved, keep


def _checkpoint_bytes(trained: int, work: Workload) -> int:
    """fp32 originals and Adam's moments; beside them what can be served, but for a whole model (``servable``)."""
    served = 0 if work.method == "full" else work.number_bytes
    return trained * (FLOAT * (1 + MOMENTS) + served)
