"""What a plan warns of: it does not stand against training, and can be mended before a GPU is taken. Pure."""

from llava_api.judging import describe_too_few_groups, describe_too_few_retained
from llava_api.legibility import describe_small_pictures, describe_small_text
from llava_api.memory import RESERVED_S, StoragePlan
from llava_api.model_facts import ModelFacts
from llava_api.optimizer_steps import describe_few_steps
from llava_api.quantities import format_gib
from llava_api.spec import Spec
from llava_api.status import Data


def list_warnings(spec: Spec, found: Data, model: ModelFacts, storage: StoragePlan) -> tuple[str, ...]:
    """What is not refused, since it may be meant so."""
    few_steps = describe_few_steps(spec, found.samples_epoch, is_chosen=found.global_batch is not None)
    too_few_groups = describe_too_few_groups(
        found.groups_validation, found.groups_selection, sufficient_fraction=found.sufficient_fraction,
        is_gated=spec.evaluation.gate is not None,
    )  # fmt: skip
    too_few_retained = describe_too_few_retained(found.groups_retention)
    illegible = (
        describe_small_pictures(found.image_scale, model.image_size_px),
        describe_small_text(found.text_height_px, model.image_size_px),
    )
    return tuple(
        filter(
            None,
            (
                few_steps, too_few_groups, too_few_retained, *illegible, _warn_of_saving(spec, storage),
                _warn_of_unservable(spec), _warn_of_missing_token(spec),
            ),
        )
    )  # fmt: skip


def _warn_of_unservable(spec: Spec) -> str | None:
    """Whoever publishes adapters wants to serve them."""
    if spec.publish is None or spec.publish.what != "adapter" or spec.training.projector != "train":
        return None
    return (
        "spec.publish.what is adapter and spec.training.projector is train: servers that load adapters refuse one that "
        "brings a projector; set spec.publish.what to merged or both, or spec.training.projector to frozen"
    )


def _warn_of_missing_token(spec: Spec) -> str | None:
    """It would show when everything is trained, and can be mended until then."""
    places = enumerate(spec.publish.destinations if spec.publish is not None else ())
    missing = next((n for n, one in places if one.address.startswith("hf://") and one.secret_ref is None), None)
    if missing is None:
        return None
    return (
        f"spec.publish.destinations[{missing}].secretRef is left out, and a hub takes models of nobody: name a Secret "
        "with the key token before the run is to be published"
    )


def _warn_of_saving(spec: Spec, storage: StoragePlan) -> str | None:
    """The volume may be faster, and what is lost are the steps since the last checkpoint."""
    grace_s = spec.workers.grace_period_seconds
    if storage.saving_s <= grace_s - RESERVED_S:
        return None
    return (
        f"a checkpoint of {format_gib(storage.largest_checkpoint)} is expected to take {storage.saving_s} s to be "
        f"written, and a pod that is asked to stop has {max(0, grace_s - RESERVED_S)} s for it: set "
        f"spec.workers.gracePeriodSeconds to at least {storage.saving_s + RESERVED_S}, or up to "
        f"spec.training.checkpoint.everySteps ({spec.training.checkpoint.every_steps}) steps are done again"
    )
