"""What of a LLaVA learns with each method, and at which rate."""

from dataclasses import dataclass

from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava_api.spec import Training
from llava_trainer.model.layout import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, hub_name
from llava_trainer.model.projector import projector_of
from llava_trainer.model.tower import learning_parts, open_tower


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a peak learning rate and weight decay."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float


def train_projector(llava: LlavaForConditionalGeneration) -> None:
    """Make the projector the only thing that learns: phase 1."""
    llava.requires_grad_(False)
    projector_of(llava).requires_grad_(True)


def train_whole(
    llava: LlavaForConditionalGeneration, *, learns_projector: bool = True, learns_tower: bool = False
) -> None:
    """Make the language model learn, with embedding and head, and what else is to beside it."""
    llava.requires_grad_(True)
    llava.model.vision_tower.requires_grad_(False)
    if learns_tower:
        open_tower(llava.model.vision_tower, llava.config)
    projector_of(llava).requires_grad_(learns_projector)


def trained_whole(training: Training, config: LlavaConfig) -> tuple[str, ...]:
    """Beginnings of the hub names of all that is trained whole after alignment; an adapter is another matter.

    Args:
        training: the run's.
        config: of the model.
    """
    if training.method == "none":
        return ()
    language_model = (f"{LANGUAGE_MODEL}.",) if training.method == "full" else ()
    projector = (f"{PROJECTOR}.",) if training.projector == "train" else ()
    parts = learning_parts(config) if training.vision_tower.mode == "full" else ()
    return (*language_model, *projector, *(hub_name(f"{VISION_TOWER}.{part}.") for part in parts))


def group_parameters(
    module: nn.Module,
    *,
    learning_rate: float,
    projector_learning_rate: float,
    weight_decay: float,
    tower_learning_rate: float = 0.0,
) -> tuple[ParameterGroup, ...]:
    """Sort everything that learns into groups; norms and biases do not decay, as in LLaVA's own trainer.

    Args:
        module: the model, or what holds it.
        learning_rate: peak learning rate of adapter or language model.
        projector_learning_rate: that of the projector.
        weight_decay: of weights.
        tower_learning_rate: that of the vision tower; not read where it is frozen.
    """
    chosen: dict[str, list[nn.Parameter]] = {
        "language_model": [], "language_model_norm": [], "projector": [], "projector_bias": [], "vision_tower": [],
        "vision_tower_norm": [],
    }  # fmt: skip
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        # By name: under ZeRO-3 a parameter does not show how many dimensions it has.
        if PROJECTOR in name:
            chosen["projector_bias" if name.endswith(".bias") else "projector"].append(parameter)
        elif VISION_TOWER in name:
            is_spared = name.endswith(".bias") or "norm" in name.partition(VISION_TOWER)[2]
            chosen["vision_tower_norm" if is_spared else "vision_tower"].append(parameter)
        else:
            chosen["language_model_norm" if "norm." in name else "language_model"].append(parameter)
    settings = {
        "language_model": (learning_rate, weight_decay),
        "language_model_norm": (learning_rate, 0.0),
        "projector": (projector_learning_rate, weight_decay),
        "projector_bias": (projector_learning_rate, 0.0),
        "vision_tower": (tower_learning_rate, weight_decay),
        "vision_tower_norm": (tower_learning_rate, 0.0),
    }
    return tuple(
        ParameterGroup(name=name, parameters=tuple(chosen[name]), learning_rate=peak, weight_decay=decay)
        for name, (peak, decay) in settings.items()
        if chosen[name]
    )
