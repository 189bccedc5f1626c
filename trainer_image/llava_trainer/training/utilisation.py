"""How much of the GPUs' arithmetic training uses: model FLOPs utilisation (MFU), of what each step has to learn from.

MFU is PaLM's (Chowdhery et al. 2022, appendix B): operations that the result needs, a second, over those that the GPUs
can do at most. Padding counts as nothing, the vision tower counts, what is computed a second time does not.
"""

from dataclasses import dataclass

import torch

from llava_api.model_facts import ModelFacts
from llava_api.run_config import RunConfig
from llava_trainer.data.model_facts import read_model_facts
from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.flops import count_flops, peak_of, positions_of_samples
from llava_trainer.training.phase import Phase


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """Knows what each step computes, and what the GPUs could."""

    model: ModelFacts
    phase: Phase
    plan: BatchPlan
    peak_flops_per_s: float
    """Of all ranks' GPUs together."""

    def mfu(self, step: int, seconds: float) -> float:
        """Fraction of the GPUs' peak that the step with this number, counted from 0, has used in ``seconds``."""
        lora = self.phase.training.lora
        flops = count_flops(
            self.model, self.phase.method, positions_of_samples(self.plan.sizes, self.plan.batch(step)),
            rank=lora.rank, targets=lora.targets, learns_projector=self.phase.learns_projector,
            learns_tower=self.phase.learns_tower,
        )  # fmt: skip
        return flops.model / seconds / self.peak_flops_per_s


def find_utilisation(
    config: RunConfig, phase: Phase, plan: BatchPlan, world: World, dtype: torch.dtype
) -> Utilisation | None:
    """What tells the utilisation; None where the peak is not known.

    It is not without a GPU, with one that is not in the table, and in another number format than bf16. All ranks are
    taken to have the first one's GPU.

    Raises:
        StageError: InvalidModel; config.json does not tell the model's shape.
    """
    if world.device.type != "cuda" or dtype != torch.bfloat16:
        return None
    peak = _peak_of_device(torch.cuda.get_device_name(world.device))
    if peak is None:
        return None
    model = read_model_facts(config.model_dir)
    return Utilisation(model=model, phase=phase, plan=plan, peak_flops_per_s=peak * world.world_size)


def _peak_of_device(name: str) -> float | None:
    """A MIG instance has the name of the whole GPU in its own, and a part of its peak."""
    return None if "MIG" in name.split() else peak_of(name)
