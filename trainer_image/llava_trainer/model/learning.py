"""What of a LLaVA learns with each method, and at which rate. The vision tower never does."""

from dataclasses import dataclass

from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_api.spec import Training
from llava_trainer.model.layout import LANGUAGE_MODEL, PROJECTOR
from llava_trainer.model.projector import projector_of


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


def train_whole(llava: LlavaForConditionalGeneration, *, learns_projector: bool = True) -> None:
    """Make everything learn but the vision tower, and a frozen projector: language model with embedding and head."""
    llava.requires_grad_(True)
    llava.model.vision_tower.requires_grad_(False)
    projector_of(llava).requires_grad_(learns_projector)


def trained_whole(training: Training) -> tuple[str, ...]:
    """Beginnings of the hub names of all that is trained whole after alignment; an adapter is another matter."""
    language_model = (f"{LANGUAGE_MODEL}.",) if training.method == "full" else ()
    projector = (f"{PROJECTOR}.",) if training.method != "none" and training.projector == "train" else ()
    return language_model + projector


def group_parameters(
    module: nn.Module, *, learning_rate: float, projector_learning_rate: float, weight_decay: float
) -> tuple[ParameterGroup, ...]:
    """Sort everything that learns into groups; norms and biases do not decay, as in LLaVA's own trainer.

    Args:
        module: the model, or what holds it.
        learning_rate: peak learning rate of whatever is not the projector.
        projector_learning_rate: that of the projector.
        weight_decay: of weights.
    """
    chosen: dict[str, list[nn.Parameter]] = {
        "language_model": [], "language_model_norm": [], "projector": [], "projector_bias": []
    }  # fmt: skip
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        # By name: under ZeRO-3 a parameter does not show how many dimensions it has.
        if PROJECTOR in name:
            chosen["projector_bias" if name.endswith(".bias") else "projector"].append(parameter)
        else:
            chosen["language_model_norm" if "norm." in name else "language_model"].append(parameter)
    settings = {
        "language_model": (learning_rate, weight_decay),
        "language_model_norm": (learning_rate, 0.0),
        "projector": (projector_learning_rate, weight_decay),
        "projector_bias": (projector_learning_rate, 0.0),
    }
    return tuple(
        ParameterGroup(name=name, parameters=tuple(chosen[name]), learning_rate=peak, weight_decay=decay)
        for name, (peak, decay) in settings.items()
        if chosen[name]
    )
