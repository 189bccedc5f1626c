"""Which stages a run has. Pure."""

from llava_api.constants import STAGES, StageName
from llava_api.spec import Alignment, Publish, Spec, Training


def stages_of(spec: Spec) -> tuple[StageName, ...]:
    """The stages that a run goes through, in order."""
    return select_stages(spec.alignment, spec.training, spec.publish)


def select_stages(alignment: Alignment | None, training: Training, publish: Publish | None) -> tuple[StageName, ...]:
    """The same, by the parts of the spec that decide it."""
    left_out = set()
    if alignment is None:
        left_out.add(StageName.ALIGN)
    if training.method == "none":
        left_out.add(StageName.TRAIN)
    if publish is None:
        left_out.add(StageName.PUBLISH)
    return tuple(stage for stage in STAGES if stage not in left_out)
