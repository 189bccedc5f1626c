"""What training and merging put on the run's volume, beyond what prepare has put there."""

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


@dataclass(frozen=True, kw_only=True)
class StoragePlan:
    """Bytes on the run's volume."""

    checkpoint: int
    """One checkpoint of the last phase."""
    checkpoints: int
    """All of that phase that lie there at a time: the newest ``keep``, and the one that is being written."""
    total: int
    """The most that lies there at any time of what training and merging make."""


def plan_storage(spec: Spec, model: ModelFacts, samples: Mapping[StageName, int]) -> StoragePlan:
    """Follow a run through its stages: checkpoints stay when their stage has ended, and results come beside them.

    Args:
        spec: of the run.
        model: the model's shape.
        samples: how many each training stage learns from.
    """
    keep, every = spec.training.checkpoint.keep, spec.training.checkpoint.every_steps
    lying = total = checkpoint = checkpoints = 0
    for stage in (stage for stage in stages_of(spec) if stage in TRAINING_STAGES):
        work = workload_of(spec, stage, model, Prepared())
        trained = count_trained(model, work)
        # Instead of one after the last step there is the result.
        saved = max(0, num_steps(spec, stage, samples[stage]) - 1) // every
        checkpoint = _checkpoint_bytes(trained, work)
        checkpoints = min(saved, keep + 1) * checkpoint
        total = max(total, lying + checkpoints)
        lying += min(saved, keep) * checkpoint + trained * work.number_bytes
    # Every run ends with the whole model.
    lying += count_parameters(model).model * (FLOAT if spec.merge.dtype == "float32" else 2)
    return StoragePlan(checkpoint=checkpoint, checkpoints=checkpoints, total=max(total, lying))


def _checkpoint_bytes(trained: int, work: Workload) -> int:
    """fp32 originals and Adam's moments; beside them what can be served, but for a whole model (``servable``)."""
    served = 0 if work.method == "full" else work.number_bytes
    return trained * (FLOAT * (1 + MOMENTS) + served)
