"""Which stages a run has. Pure."""

from llava_api.constants import STAGES, StageName
from llava_api.spec import Spec


def stages_of(spec: Spec) -> tuple[StageName, ...]:
    """The stages that a run goes through, in order."""
    left_out = set()
    if spec.alignment is None:
        left_out.add(StageName.ALIGN)
    if spec.training.method == "none":
        left_out.add(StageName.TRAIN)
    return tuple(stage for stage in STAGES if stage not in left_out)
