"""Names of a LLaVA's tensors: the three layouts in which checkpoints come, and the hub's, in which we write.

The hub's names (``language_model.model.…``, ``vision_tower.vision_model.…``) are those that servers and converters
read; transformers 5 calls the same tensors ``model.language_model.…`` and leaves ``vision_model`` out.
"""

from llava_api.failures import Reason
from llava_trainer.errors import StageError

PROJECTOR = "multi_modal_projector"
LANGUAGE_MODEL = "language_model"
VISION_TOWER = "vision_tower"
SPOKEN = {PROJECTOR: "projector", LANGUAGE_MODEL: "language model", VISION_TOWER: "vision tower"}
"""What each is called in messages."""

# The first prefix that fits decides, so that a longer one stands before its own beginning.
_HUB_PREFIXES = (
    ("language_model.model.", "language_model.model."),
    ("language_model.lm_head.", "language_model.lm_head."),
    ("language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("vision_tower.vision_model.", "vision_tower.vision_model."),
    ("vision_tower.", "vision_tower.vision_model."),
    (f"{PROJECTOR}.", f"{PROJECTOR}."),
)
_MODULE_PREFIXES = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    (f"{PROJECTOR}.", f"model.{PROJECTOR}."),
)
_DERIVED_BUFFERS = (".position_ids", ".rotary_emb.inv_freq")


def hub_name(name: str) -> str:
    """Hub name of a tensor that is named in any of the three layouts.

    Raises:
        StageError: no LLaVA v1.5 has a tensor of that name.
    """
    renamed = _rename(name.removeprefix("model."), _HUB_PREFIXES)
    if renamed is None:
        raise StageError(
            Reason.INVALID_MODEL,
            f"{name} is not the name of a LLaVA v1.5 tensor in hub layout: convert the checkpoint to the layout of "
            "llava-hf/llava-1.5-7b-hf first",
        )
    return renamed


def module_name(hub: str) -> str:
    """What transformers 5 calls the tensor with this hub name: the names that PEFT's patterns are matched with."""
    renamed = _rename(hub, _MODULE_PREFIXES)
    if renamed is None:
        raise ValueError(f"{hub} is not a hub name")
    return renamed


def is_derived(name: str) -> bool:
    """Whether a tensor is a buffer that old checkpoints carry and every loader computes anew."""
    return name.endswith(_DERIVED_BUFFERS)


def _rename(name: str, prefixes: tuple[tuple[str, str], ...]) -> str | None:
    for prefix, new in prefixes:
        if name.startswith(prefix):
            return new + name.removeprefix(prefix)
    return None
