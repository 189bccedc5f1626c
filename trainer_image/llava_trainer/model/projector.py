"""The projector by itself: what phase 1 trains, and the folder in which one run hands it to another.

The folder holds ``projector.safetensors`` with tensors under their hub names (``multi_modal_projector.linear_1.weight``
and so on) and ``config.json`` with what must agree where it is put to use.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.model.layout import PROJECTOR
from llava_trainer.model.partition import shape_of, whole

WEIGHTS_FILE = "projector.safetensors"
CONFIG_FILE = "config.json"
_PREFIX = f"{PROJECTOR}."


def projector_of(llava: LlavaForConditionalGeneration) -> nn.Module:
    """The projector that is used: where PEFT trains a copy of it, that copy."""
    module: nn.Module = getattr(llava.model, PROJECTOR)
    copies = getattr(module, "modules_to_save", None)
    return module if copies is None else copies["default"]


def projector_parameters(llava: LlavaForConditionalGeneration) -> dict[str, nn.Parameter]:
    """Its parameters by hub name."""
    return {_PREFIX + name: parameter for name, parameter in projector_of(llava).named_parameters()}


def reset_projector(llava: LlavaForConditionalGeneration, seed: int) -> None:
    """Begin a new projector, drawn as LLaVA draws it: PyTorch's own initialisation of linear layers."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    fresh: dict[str, torch.Tensor] = {}
    for name, module in projector_of(llava).named_modules():
        if isinstance(module, nn.Linear):
            layer = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            fresh |= {f"{_PREFIX}{name}.{key}": tensor for key, tensor in layer.state_dict().items()}
    torch.set_rng_state(generator_state)
    _fill(llava, fresh)


def load_projector(llava: LlavaForConditionalGeneration, folder: Path) -> None:
    """Put the projector in ``folder`` into ``llava``.

    Raises:
        StageError: InvalidModel; it cannot be read or belongs to another model.
    """
    weights = read_projector(folder)
    expected = {name: shape_of(parameter) for name, parameter in projector_parameters(llava).items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        name = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise StageError(
            Reason.INVALID_MODEL,
            f"{folder / WEIGHTS_FILE}: {name} is {found.get(name, 'missing')}, but the model's is "
            f"{expected.get(name, 'missing')}: the projector was trained for another model",
        )
    _fill(llava, weights)


def read_projector(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of the projector in ``folder`` by hub name.

    Raises:
        StageError: InvalidModel; there is none, or it is damaged.
    """
    file = folder / WEIGHTS_FILE
    try:
        weights: dict[str, torch.Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise StageError(Reason.INVALID_MODEL, f"{file} cannot be read: {error}") from error
    stray = sorted(name for name in weights if not name.startswith(_PREFIX))
    if stray or not weights:
        raise StageError(
            Reason.INVALID_MODEL, f"{file} is not a projector: it holds {stray[0] if stray else 'nothing'}"
        )
    return weights


def describe_projector(config: Any) -> dict[str, Any]:
    """What a folder's config.json says: between which widths the projector translates, and from which features.

    Args:
        config: configuration of the LLaVA that it was trained in.
    """
    return {
        "multimodal_projector_bias": config.multimodal_projector_bias,
        "projector_hidden_act": config.projector_hidden_act,
        "text_hidden_size": config.text_config.hidden_size,
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "vision_hidden_size": config.vision_config.hidden_size,
    }


def dump_projector_config(config: Any) -> str:
    """The text of config.json."""
    return json.dumps(describe_projector(config), indent=2, sort_keys=True) + "\n"


def _fill(llava: LlavaForConditionalGeneration, weights: Mapping[str, torch.Tensor]) -> None:
    parameters = projector_parameters(llava)
    with torch.no_grad(), whole(parameters.values(), changed=True):
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
