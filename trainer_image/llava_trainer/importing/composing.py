"""Which tensors a model is made of, and whose settings, tokenizer and tower it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError
from llava_trainer.importing.configuration import read_original
from llava_trainer.importing.folders import find_weights
from llava_trainer.importing.lora import apply_lora
from llava_trainer.importing.names import (
    NORM,
    TOWER,
    Tensors,
    name_original,
    name_tower,
)
from llava_trainer.importing.parts import PROJECTOR_PICKLE, Kind, ModelParts, kind_of
from llava_trainer.importing.projector import read_projector_part
from llava_trainer.importing.recipes import Recipes, add_delta, copy_all, replace_all, untie_head
from llava_trainer.model.layout import hub_name, is_derived


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A model by its parts, before anything is read but headers and settings.

    Attributes:
        recipes: its tensors by hub name; no projector where a fresh one is to be drawn.
        llama: settings of the language model.
        original: settings of the original code (``mm_*``), empty where nothing was trained with it.
        language_model_dir: where the language model comes from.
        tower_dir: folder with the tower's configuration, if there is one.
        tower_name: what the checkpoint calls its tower.
        tokenizer_dirs: where to look for the tokenizer, the first with one has it.
        projector_dir: where the projector came from, if it is a part by itself.
        has_fresh_projector: whether one is to be drawn.
        layout: how the model came.
    """

    recipes: Recipes
    llama: dict[str, Any]
    original: dict[str, Any]
    language_model_dir: Path
    tower_dir: Path | None
    tower_name: str | None
    tokenizer_dirs: tuple[Path, ...]
    projector_dir: Path | None
    has_fresh_projector: bool
    layout: Literal["hub", "original", "assembled"]


def compose(parts: ModelParts) -> Composition:
    """Work out what the model is made of.

    Raises:
        StageError: InvalidModel; a part is missing or is something else than its place asks for.
    """
    if parts.language_model is not None:
        return _assemble(parts, parts.language_model)
    if parts.source is None:
        raise _invalid("spec.model names neither source nor languageModel")
    return _from_source(parts, parts.source, kind_of(parts.source))


def _assemble(parts: ModelParts, folder: Path) -> Composition:
    if kind_of(folder) is not Kind.LANGUAGE_MODEL:
        raise _invalid(f"{folder} is no Llama by itself: name it in spec.model.source if it is a LLaVA")
    if parts.vision_tower is None:
        raise _invalid("spec.model.languageModel needs spec.model.visionTower")
    recipes = copy_all(_read_model(folder) | _read_tower(parts.vision_tower))
    return Composition(
        recipes=_with_projector(recipes, parts.projector),
        llama=read_settings(folder / "config.json"),
        original={},
        language_model_dir=folder,
        tower_dir=parts.vision_tower,
        tower_name=None,
        tokenizer_dirs=(folder,),
        projector_dir=parts.projector,
        has_fresh_projector=parts.projector is None,
        layout="assembled",
    )


def _from_source(parts: ModelParts, source: Path, kind: Kind) -> Composition:
    if kind is Kind.LANGUAGE_MODEL:
        raise _invalid(f"{source} is a Llama without vision: name it in spec.model.languageModel")
    model_dir = _model_dir(parts, source, kind)
    recipes = _apply(source, kind, model_dir)
    is_hub = kind is Kind.HUB
    original = {} if is_hub else read_original(source / "config.json")
    _check_tuned_tower(original, recipes, source)
    if not _has_tower(recipes) and parts.vision_tower is not None:
        recipes |= copy_all(_read_tower(parts.vision_tower))
    settings = read_settings(model_dir / "config.json")
    hub_base = isinstance(settings.get("text_config"), dict)
    return Composition(
        recipes=_with_projector(recipes, parts.projector),
        llama=settings["text_config"] if hub_base else settings,
        original=_features_of(settings) | original if hub_base else original,
        language_model_dir=model_dir,
        tower_dir=parts.vision_tower or (model_dir if hub_base else None),
        tower_name=original.get("mm_vision_tower"),
        tokenizer_dirs=(source, model_dir),
        projector_dir=parts.projector,
        has_fresh_projector=False,
        layout="hub" if is_hub else "original",
    )


def _model_dir(parts: ModelParts, source: Path, kind: Kind) -> Path:
    if kind in (Kind.LORA, Kind.PROJECTOR) and parts.base is None:
        raise _invalid(
            f"{source} is a {kind} folder of the original code, not a whole model: name in spec.model.base the "
            "language model that it is applied to"
        )
    return parts.base or source


def _apply(source: Path, kind: Kind, model_dir: Path) -> Recipes:
    model = _read_model(model_dir)
    if model_dir == source:
        return copy_all(model)
    if kind is Kind.LORA:
        return apply_lora(copy_all(model), source)
    if kind is Kind.PROJECTOR:
        return replace_all(copy_all(model), read_projector_part(source / PROJECTOR_PICKLE), "the projector")
    delta = name_original(find_weights(source))
    _check_differences(model, delta, source)
    return add_delta(model, delta)


def _check_differences(base: Tensors, delta: Tensors, source: Path) -> None:
    """Tell a whole model from differences by its last norm: added to the base, it would make a model of noise."""
    original, changed = base.get(NORM), delta.get(NORM)
    if original is None or changed is None or original.shape != changed.shape:
        return
    before, after = original.read().float(), changed.read().float()
    if (after - before).norm() < before.norm() / 2:
        raise _invalid(
            f"{source} holds a whole model, not differences that {original.file.parent} could be added to: remove "
            "spec.model.base"
        )


def _read_model(folder: Path) -> Tensors:
    tensors = find_weights(folder)
    if kind_of(folder) is Kind.HUB:
        return untie_head({hub_name(name): tensor for name, tensor in tensors.items() if not is_derived(name)})
    return untie_head(name_original(tensors))


def _has_tower(recipes: Recipes) -> bool:
    return any(name.startswith(TOWER) for name in recipes)


def _check_tuned_tower(original: dict[str, Any], recipes: Recipes, source: Path) -> None:
    if original.get("unfreeze_mm_vision_tower") and not _has_tower(recipes):
        raise _invalid(
            f"{source / 'config.json'}: unfreeze_mm_vision_tower is true, but the checkpoint does not carry the vision "
            "tower that was trained: fetch the whole checkpoint"
        )


def _read_tower(folder: Path) -> Tensors:
    return name_tower(find_weights(folder))


def _with_projector(recipes: Recipes, path: Path | None) -> Recipes:
    if path is None:
        return recipes
    return replace_all(recipes, read_projector_part(path), "the projector")


def _features_of(settings: dict[str, Any]) -> dict[str, Any]:
    """How a model in hub layout takes the tower's features, in the original code's words."""
    strategy = settings.get("vision_feature_select_strategy", "default")
    return {
        "mm_vision_select_layer": settings.get("vision_feature_layer", -2),
        "mm_vision_select_feature": "cls_patch" if strategy == "full" else "patch",
    }


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
