"""A model with what a run has trained whole, to compare it with."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from llava_trainer.model.layout import hub_name
from llava_trainer.model.loading import load_model


@torch.no_grad()
def load_trained(model_dir: Path, weights_dir: Path, *, learned: tuple[str, ...]) -> LlavaForConditionalGeneration:
    """The checkpoint in fp32 with the weights in ``weights_dir``, which are all that ``learned`` names, in their place.

    Args:
        model_dir: the checkpoint.
        weights_dir: what was trained.
        learned: beginnings of the hub names of all that was trained (``trained_whole``).
    """
    llava = load_model(model_dir, torch.float32, "cpu")
    places = {hub_name(name): parameter for name, parameter in llava.named_parameters()}
    expected = {name for name in places if name.startswith(learned)}
    for file in sorted(weights_dir.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            expected.remove(name)
            places[name].copy_(tensor)
    assert not expected
    return llava
