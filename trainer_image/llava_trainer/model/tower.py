"""The vision tower where it learns: which parts of it, and what of the rest is kept out of the graph.

Features are hidden states of a layer before the last, as a rule: what lies behind it changes nothing that is seen, has
no gradient, and stays as it is.
"""

import torch
from torch import nn
from transformers import LlavaConfig

from llava_api.model_facts import count_seen_layers


def learning_parts(config: LlavaConfig) -> tuple[str, ...]:
    """Modules that the tower's features depend on, by their names in transformers' CLIPVisionModel."""
    taken = config.vision_feature_layer
    seen = count_seen_layers(config.vision_config.num_hidden_layers, [taken] if isinstance(taken, int) else taken)
    return ("embeddings", "pre_layrnorm", *(f"encoder.layers.{number}" for number in range(seen)))


def open_tower(tower: nn.Module, config: LlavaConfig) -> None:
    """Make all that is seen of the tower learn."""
    for part in learning_parts(config):
        tower.get_submodule(part).requires_grad_(True)


def has_learning(module: nn.Module) -> bool:
    """Whether anything of it learns."""
    return any(parameter.requires_grad for parameter in module.parameters())


def keep_out_of_graph(tower: nn.Module) -> None:
    """Run what does not learn of the tower without a graph, whatever hooks anyone puts on it.

    That is all of it, or where it learns what lies behind the features.
    """
    if not has_learning(tower):
        _run_without_graph(tower)
        return
    for part in (*tower.get_submodule("encoder.layers").children(), tower.get_submodule("post_layernorm")):
        if not has_learning(part):
            _run_without_graph(part)


def _run_without_graph(module: nn.Module) -> None:
    module.requires_grad_(False)
    module.forward = torch.no_grad()(module.forward)
