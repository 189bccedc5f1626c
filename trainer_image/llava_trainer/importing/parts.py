"""What a person names as a model, and what each folder turns out to be."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError
from llava_trainer.importing.folders import has_only_pickles, has_weights

ADAPTER_CONFIG = "adapter_config.json"
PROJECTOR_PICKLE = "mm_projector.bin"
NON_LORA_PICKLE = "non_lora_trainables.bin"


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """Folders of the parts, as spec.model names them (where a part is one file, that file).

    Attributes:
        source: a LLaVA checkpoint, or what is applied to ``base``.
        base: language model (or LLaVA) that ``source`` is applied to.
        language_model: instead of ``source``: Llama or Vicuna, for a fresh projector.
        vision_tower: CLIP.
        projector: projector to put in place of the model's own.
    """

    source: Path | None = None
    base: Path | None = None
    language_model: Path | None = None
    vision_tower: Path | None = None
    projector: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """A model in hub layout.

    Attributes:
        model_dir: its folder.
        layout: how it came.
    """

    model_dir: Path
    layout: Literal["hub", "original", "assembled"]


class Kind(StrEnum):
    """What a folder holds."""

    HUB = "hub"
    ORIGINAL = "original"
    LORA = "LoRA"
    PROJECTOR = "mm_projector"
    LANGUAGE_MODEL = "language model"


def is_hub_layout(parts: ModelParts) -> bool:
    """Whether the model can be read in place: it is in hub layout, in safetensors.

    Raises:
        StageError: InvalidModel; the source is no model, or is whole and parts are named beside it.
    """
    if parts.source is None or kind_of(parts.source) is not Kind.HUB:
        return False
    for part, field in ((parts.base, "base"), (parts.vision_tower, "visionTower")):
        if part is not None:
            raise StageError(
                Reason.INVALID_MODEL,
                f"{parts.source} is a whole LLaVA in hub layout, with a language model and a vision tower of its own: "
                f"remove spec.model.{field}",
            )
    # Later stages read safetensors alone: pickles are rewritten, as another layout is.
    return parts.projector is None and not has_only_pickles(parts.source)


def kind_of(folder: Path) -> Kind:
    """Tell what a folder holds by its files.

    Raises:
        StageError: InvalidModel, naming the architecture if it is another model's.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return Kind.LORA
    path = folder / "config.json"
    settings = read_settings(path)
    if "text_config" in settings and settings.get("model_type") == "llava":
        return Kind.HUB
    architectures = _architectures(settings)
    if "LlavaLlamaForCausalLM" in architectures or settings.get("model_type") in ("llava", "llava_llama"):
        alone = (folder / PROJECTOR_PICKLE).is_file() and not has_weights(folder)
        return Kind.PROJECTOR if alone else Kind.ORIGINAL
    if settings.get("model_type") == "llama":
        return Kind.LANGUAGE_MODEL
    raise StageError(
        Reason.INVALID_MODEL,
        f"{path}: model_type is {settings.get('model_type')!r} and architectures is {list(architectures)}: neither a "
        "LLaVA v1.5 of CLIP and Llama nor a Llama",
    )


def _architectures(settings: dict[str, Any]) -> tuple[str, ...]:
    found = settings.get("architectures")
    return tuple(str(name) for name in found) if isinstance(found, list) else ()
