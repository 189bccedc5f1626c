"""What a training is, as far as a checkpoint of another one must not be taken for its own.

Compared are what decides which samples a step sees and what the numbers in a checkpoint belong to. How the work is
shared out (pods, perDevice, ZeRO stage) may change between attempts, and so may how far it goes from here (learning
rate, checkpoints).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_api.spec import Training
from llava_trainer.files import sha256_file
from llava_trainer.training.phase import Phase

_MODEL, _SAMPLES, _HELD_OUT, _MIXTURE = "model", "samples", "held-out samples", "mixture"
_NO_MIXTURE = "none"
_RECIPE = "recipe"
"""Digest of all settings by which a training goes on. Another run's checkpoint has to agree in them; in a run's own
they may become others: a newer image knows more of them."""
_NO_RECIPE: Any = {
    "checkpoint": True, "zero": True, "max_restarts": True, "tracking": True, "batch": {"per_device"},
    "validation": {"answers"},
}  # fmt: skip
"""How the work is shared out, kept and shown."""
_ADDED: Any = {
    "": ("projector", "maxSteps", "minimumLearningRate", "optimizer", "visionTower"), "lora": ("targets", "rsLora")
}  # fmt: skip
"""Settings that came later, by the part that they are in: they count where they are not as they were before."""
_SHOWN_DIGITS = 19
"""Of a digest in a message: sha256: and twelve digits."""
_ROWS = 3
"""Of each tensor that are hashed."""
_READ_WHOLE = 1 << 16
"""Numbers up to which a tensor is hashed whole."""


def identify_training(config: RunConfig, phase: Phase) -> dict[str, str]:
    """What this training is, by name: settings by their path in the manifest, digests of model and samples.

    Raises:
        OSError: model or samples cannot be read.
    """
    part = "alignment" if phase.stage is StageName.ALIGN else "training"
    settings: dict[str, object] = {
        "training.method": phase.method,
        "training.seed": phase.training.seed,
        f"{part}.batch.global": phase.training.batch.num_samples,
        f"{part}.epochs": phase.training.epochs,
        "training.grouping": phase.training.grouping,
        "training.maxLength": phase.training.max_length,
    }
    if phase.training.max_steps is not None:
        # Not told otherwise: a checkpoint of before there was such a setting goes on counting as the same training.
        settings["training.maxSteps"] = phase.training.max_steps
    folders = [config.model_dir]
    if phase.stage is StageName.TRAIN and config.alignment is not None:
        # What phase 1 has made of the model's projector.
        folders.append(config.volume.projector_dir)
    if config.model.adapter is not None:
        folders.append(config.volume.given_adapter_dir)
    return {
        **{f"spec.{name}": str(value) for name, value in settings.items()},
        _MODEL: fingerprint_model(folders),
        _SAMPLES: sha256_file(phase.samples_file),
        **_identify_mixture(phase),
        **_identify_held_out(phase),
        _RECIPE: _digest_recipe(phase),
    }


def told_by(training: Mapping[str, str]) -> Mapping[str, str]:
    """What a checkpoint tells of its training, and what it was where an image of that time told nothing of it."""
    return {_MIXTURE: _NO_MIXTURE, **training}


def _identify_mixture(phase: Phase) -> dict[str, str]:
    """Named always, so that a training without a mixture does not go on from one that has one, nor the other way."""
    settings = [(part.share, sha256_file(part.samples_file)) for part in phase.mixture]
    return {_MIXTURE: hashlib.sha256(json.dumps(settings).encode()).hexdigest() if settings else _NO_MIXTURE}


def _identify_held_out(phase: Phase) -> dict[str, str]:
    """By what a step is selected: what others have shown does not compare."""
    if phase.training.validation is None or phase.held_out_file is None:
        return {}
    return {_HELD_OUT: sha256_file(phase.held_out_file)}


def _digest_recipe(phase: Phase) -> str:
    settings = phase.training.model_dump(mode="json", exclude=_NO_RECIPE)
    usual = Training().model_dump(mode="json")
    for part, names in _ADDED.items():
        here, there = (settings[part], usual[part]) if part else (settings, usual)
        for name in names:
            if here[name] == there[name]:
                del here[name]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def find_differences(made_by: Mapping[str, str], training: Mapping[str, str]) -> list[str]:
    """What a checkpoint was made by that ``training`` is not, each in words with what to do.

    A checkpoint that does not tell something was written by an older image: that is not compared.
    """
    return [
        _describe(name, made_by[name], value)
        for name, value in training.items()
        if name != _RECIPE and name in made_by and made_by[name] != value
    ]


def fingerprint_model(folders: list[Path]) -> str:
    """``sha256:`` and a digest of what the weights are: of each tensor its name, format, shape, and some of its rows.

    The first, the one in the middle and the last row: any training moves them, and they are read in a second from a
    model that takes minutes to be read whole from a slow volume, with GPUs waiting. How the weights are spread over
    files does not count.
    """
    tensors = {}
    for number, folder in enumerate(folders):
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a mapping
                    tensors[f"{number}/{name}"] = _fingerprint(stored, name)
    text = json.dumps(tensors, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _fingerprint(stored: Any, name: str) -> str:
    view = stored.get_slice(name)
    shape = view.get_shape()
    digest = hashlib.sha256(f"{view.get_dtype()} {shape}".encode())
    if math.prod(shape) <= _READ_WHOLE:
        digest.update(_bytes_of(stored.get_tensor(name)))
    else:
        for row in sorted({index * (shape[0] - 1) // (_ROWS - 1) for index in range(_ROWS)}):
            digest.update(_bytes_of(view[row : row + 1]))
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _describe(name: str, there: str, here: str) -> str:
    if name == _MODEL:
        return (
            f"it was made from another model ({there[:_SHOWN_DIGITS]}… there, {here[:_SHOWN_DIGITS]}… here: give the "
            "run the one that it began with (spec.model))"
        )
    if name == _MIXTURE:
        return "it was made with another mixture, or with none: set spec.mixture back to what the run began with"
    if name in (_SAMPLES, _HELD_OUT):
        return (
            f"it was made from other {name} ({there[:_SHOWN_DIGITS]}… there, {here[:_SHOWN_DIGITS]}… here: give the "
            "run the dataset that it began with)"
        )
    return f"it was made with {name} {there}, which is {here} now: set it back to {there}"
