"""Hub names of the tensors of other layouts: the original code's LLaVA, Llama and CLIP by themselves."""

from collections.abc import Mapping

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.model.layout import PROJECTOR, is_derived
from llava_trainer.tensors.stored import StoredTensor

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
NORM = "language_model.model.norm.weight"
TOWER = "vision_tower.vision_model."
PROJECTOR_PREFIX = f"{PROJECTOR}."

# The first prefix that fits decides.
_ORIGINAL = (
    ("model.vision_tower.vision_tower.vision_model.", TOWER),
    ("model.mm_projector.0.", f"{PROJECTOR_PREFIX}linear_1."),
    ("model.mm_projector.2.", f"{PROJECTOR_PREFIX}linear_2."),
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
)
_CLIP = (
    ("vision_model.", TOWER),
    ("embeddings.", f"{TOWER}embeddings."),
    ("encoder.", f"{TOWER}encoder."),
    ("pre_layrnorm.", f"{TOWER}pre_layrnorm."),
    ("post_layernorm.", f"{TOWER}post_layernorm."),
)
_CLIP_OTHERS = ("text_model.", "logit_scale", "visual_projection.", "text_projection.")
_LINEAR_PROJECTOR = ("model.mm_projector.weight", "model.mm_projector.bias")

Tensors = dict[str, StoredTensor]


def name_original(tensors: Mapping[str, StoredTensor]) -> Tensors:
    """A LLaVA of the original code, or a part of one, or a Llama, by hub names.

    Raises:
        StageError: InvalidModel, naming a tensor that no LLaVA v1.5 has.
    """
    named = {}
    for name, tensor in tensors.items():
        if is_derived(name):
            continue
        if name in _LINEAR_PROJECTOR:
            raise _invalid(
                f"{tensor.file}: the projector is one linear layer ({name}); LLaVA v1.5 has two (mlp2x_gelu), and the "
                "hub's layout has no place for another"
            )
        named[_rename(name, _ORIGINAL, tensor)] = tensor
    return named


def name_tower(tensors: Mapping[str, StoredTensor]) -> Tensors:
    """CLIP's vision tower by hub names, without the text side that comes with it.

    Raises:
        StageError: InvalidModel, naming a tensor that CLIP does not have.
    """
    return {
        _rename(name, _CLIP, tensor): tensor
        for name, tensor in tensors.items()
        if not is_derived(name) and not name.startswith(_CLIP_OTHERS)
    }


def strip_peft(name: str) -> str:
    """Name of the tensor in the model that PEFT wrapped."""
    bare = name.removeprefix("base_model.")
    return bare.removeprefix("model.") if bare.startswith(("model.model.", "model.lm_head.")) else bare


def _rename(name: str, prefixes: tuple[tuple[str, str], ...], tensor: StoredTensor) -> str:
    for prefix, new in prefixes:
        if name.startswith(prefix):
            return new + name.removeprefix(prefix)
    raise _invalid(
        f"{tensor.file}: {name} is not a tensor of a LLaVA v1.5, nor of the Llama or CLIP that it is made of"
    )


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
