"""A model's parts into one folder in hub layout, tensor by tensor, whole or not at all."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from llava_api.failures import Reason
from llava_trainer.attempts.takeover import take_over_folder
from llava_trainer.data.model_config import read_settings
from llava_trainer.data.processor import AspectRatio, Processor, load_processor, save_processor
from llava_trainer.errors import StageError
from llava_trainer.files import begin_folder, publish_folder
from llava_trainer.importing.composing import Composition, compose
from llava_trainer.importing.configuration import build_config, round_up_rows
from llava_trainer.importing.names import EMBEDDING
from llava_trainer.importing.parts import ImportedModel, ModelParts, is_hub_layout
from llava_trainer.importing.projector import check_projector_config
from llava_trainer.importing.recipes import Recipes, draw_projector, enlarge_vocabulary
from llava_trainer.importing.tokenizer import ImportedTokenizer, import_tokenizer
from llava_trainer.importing.tower import Tower, describe_tower
from llava_trainer.importing.vocabulary import PROBES
from llava_trainer.model.layout import PROJECTOR, hub_name
from llava_trainer.tensors.recipes import TensorRecipe
from llava_trainer.tensors.writing import write_checkpoint

_SCRATCH = ".parts"
_BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt")
"""Endings of settings, templates and vocabularies: neither weights nor code."""
_INDEX = ".index.json"
_NAMED = 3
_BICUBIC = 3

logger = logging.getLogger(__name__)


def import_model(
    parts: ModelParts,
    target: Path,
    *,
    seed: int = 0,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> ImportedModel:
    """Make the model that ``parts`` name available in hub layout.

    A source in hub layout stays where it is, unless its weights are pickles or a projector is put into it: then its
    weights are written anew, and what stands beside them is copied. What is written goes to ``target``, aside
    first, so that a folder of that name is whole; an earlier attempt's is used again.

    Args:
        parts: what the model consists of.
        target: folder to write to.
        seed: of a fresh projector.
        on_tensor: told (tensors written, tensors in all) after each.

    Raises:
        StageError: InvalidModel; a part is missing, damaged, of another architecture, or contradicts another.
    """
    if is_hub_layout(parts):
        assert parts.source is not None
        return ImportedModel(model_dir=parts.source, layout="hub")
    composition = compose(parts)
    if not target.exists() and not take_over_folder(target):
        if composition.layout == "hub":
            _rewrite(composition, target, on_tensor)
        else:
            _convert(composition, target, seed, on_tensor)
    return ImportedModel(model_dir=target, layout=composition.layout)


@dataclass(frozen=True, kw_only=True)
class _Conversion:
    """Everything that is decided before a weight is read."""

    config: dict[str, Any]
    recipes: Recipes
    tokenizer: ImportedTokenizer
    tower: Tower
    aspect_ratio: AspectRatio


def _rewrite(composition: Composition, target: Path, on_tensor: Callable[[int, int], None]) -> None:
    """Weights anew, the rest as it is: tokenizer, processor and settings must not depend on the weights' format."""
    source = composition.language_model_dir
    # Before anything is written: it takes minutes.
    load_processor(source, "pad")
    config = read_settings(source / "config.json")
    _check_complete(composition.recipes, config)
    if composition.projector_dir is not None:
        check_projector_config(composition.projector_dir, LlavaConfig(**config).to_dict())
    aside = begin_folder(target)
    for path in source.iterdir():
        if path.suffix in _BESIDE_WEIGHTS and not path.name.endswith(_INDEX) and path.is_file():
            shutil.copyfile(path, aside / path.name)
    _write_weights(composition.recipes, aside, on_tensor)
    publish_folder(target)
    logger.info("%d tensors of %s written anew", len(composition.recipes), source)


def _convert(composition: Composition, target: Path, seed: int, on_tensor: Callable[[int, int], None]) -> None:
    conversion = _plan(composition, seed)
    aside = begin_folder(target)
    _write_processor(conversion, aside)
    _write_weights(conversion.recipes, aside, on_tensor)
    publish_folder(target)
    rows = conversion.config["text_config"]["vocab_size"]
    logger.info("%d tensors in hub layout, %d rows of vocabulary", len(conversion.recipes), rows)


def _write_weights(recipes: Recipes, aside: Path, on_tensor: Callable[[int, int], None]) -> None:
    write_checkpoint(aside, [_finite(recipe) for recipe in recipes.values()], on_tensor=on_tensor)


def _finite(recipe: TensorRecipe) -> TensorRecipe:
    def make() -> torch.Tensor:
        tensor = recipe.make()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise _invalid(f"{recipe.name} holds values that are not finite: the checkpoint is damaged")
        return tensor

    return replace(recipe, make=make)


def _plan(composition: Composition, seed: int) -> _Conversion:
    recipes = composition.recipes
    embedding = recipes.get(EMBEDDING)
    if embedding is None:
        raise _invalid(f"{composition.language_model_dir} holds no embedding of a Llama: fetch the whole checkpoint")
    tower = describe_tower(
        {name: recipe.shape for name, recipe in recipes.items()}, composition.tower_dir, composition.tower_name
    )
    tokenizer = import_tokenizer(composition.tokenizer_dirs)
    rows = round_up_rows(max(embedding.shape[0], tokenizer.size))
    config = build_config(
        composition.llama, composition.original, tower,
        rows=rows, image_token_id=tokenizer.image_token_id, pad_token_id=tokenizer.pad_token_id,
        dtype=str(embedding.dtype).removeprefix("torch."),
    )  # fmt: skip
    if composition.projector_dir is not None:
        check_projector_config(composition.projector_dir, config)
    if composition.has_fresh_projector:
        layers = config["vision_feature_layer"]
        width = tower.settings["hidden_size"] * (1 if isinstance(layers, int) else len(layers))
        recipes = recipes | draw_projector(width, embedding.shape[1], embedding.dtype, seed)
    recipes = enlarge_vocabulary(recipes, rows)
    _check_complete(recipes, config)
    aspect_ratio: AspectRatio = "square" if composition.original.get("image_aspect_ratio") == "square" else "pad"
    return _Conversion(config=config, recipes=recipes, tokenizer=tokenizer, tower=tower, aspect_ratio=aspect_ratio)


def _check_complete(recipes: Mapping[str, TensorRecipe], config: dict[str, Any]) -> None:
    """Hold names and shapes against the model that transformers builds from the configuration."""
    try:
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(LlavaConfig(**config))
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, StrictDataclassError) as error:
        raise _invalid(f"config.json describes no model that can be built: {error}") from error
    wanted = {hub_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(wanted.keys() - recipes.keys())
    unexpected = sorted(recipes.keys() - wanted.keys())
    for names, what in ((missing, "lacks"), (unexpected, "holds, beyond what its config.json tells,")):
        if names:
            raise _invalid(
                f"the model {what} {len(names)} tensors: {', '.join(names[:_NAMED])}"
                + (" and more" if len(names) > _NAMED else "")
                + _hint(names)
            )
    for name, shape in wanted.items():
        if recipes[name].shape != shape:
            raise _invalid(f"{name} is {recipes[name].shape}, but config.json tells of {shape}")


def _hint(names: list[str]) -> str:
    if all(name.startswith(PROJECTOR) for name in names):
        return ": name its projector in spec.model.projector"
    return ": fetch the whole checkpoint"


def _write_processor(conversion: _Conversion, aside: Path) -> None:
    scratch = aside / _SCRATCH
    scratch.mkdir()
    _write_json(scratch / "config.json", conversion.config)
    _write_json(scratch / "preprocessor_config.json", _image_settings(conversion.tower))
    conversion.tokenizer.write(scratch)
    processor = load_processor(scratch, conversion.aspect_ratio)
    _check_loaded(processor, conversion.tokenizer)
    save_processor(processor, aside)
    shutil.rmtree(scratch)
    _write_json(aside / "config.json", conversion.config)
    ids = {key: conversion.config["text_config"].get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(aside / "generation_config.json", {key: value for key, value in ids.items() if value is not None})


def _check_loaded(processor: Processor, tokenizer: ImportedTokenizer) -> None:
    """What transformers loads must be what was written: some of its classes build a tokenizer anew."""
    for text in PROBES:
        expected = tokenizer.backend.encode(text).ids
        if (found := processor.tokenizer(text).input_ids) != expected:
            raise _invalid(f"loaded by transformers, the tokenizer gives {text!r:.60} the ids {found}, not {expected}")


def _image_settings(tower: Tower) -> dict[str, Any]:
    size = tower.image_px
    plain = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD, "resample": _BICUBIC}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": size, "width": size},
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "rescale_factor": 1 / 255,
        **plain,
        **tower.image_settings,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
