"""What a merged model has to compute: the base with what was trained, as PEFT itself puts them together.

Nothing here is shared with the merge but the reading of tensors: names and settings are PEFT's and transformers' own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.data.model_config import load_config
from llava_trainer.errors import StageError
from llava_trainer.merging.blocks import Block, build_empty, cut_into_blocks, tied_names
from llava_trainer.merging.changes import kept_projector_dir, list_tensors
from llava_trainer.merging.recipes import find_tensors
from llava_trainer.model.adapter_folder import WEIGHTS_FILE
from llava_trainer.model.loading import check_adapter_names
from llava_trainer.model.lora import saved_name
from llava_trainer.tensors.stored import StoredTensor, find_stored


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where base and what was trained lie."""

    base_dir: Path
    adapter_dir: Path | None = None
    replaced: Mapping[str, StoredTensor] = field(default_factory=dict)
    """What stands in the base's place and is in no adapter, by hub name: trained whole, or an aligned projector."""


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A model whose blocks are filled in turn."""

    model: LlavaForConditionalGeneration | PeftModel
    blocks: tuple[Block, ...]
    tied: Mapping[str, str]
    """``blocks.tied_names``."""

    @property
    def vocabulary(self) -> int:
        """How many tokens it tells apart."""
        size: int = self.model.config.text_config.vocab_size
        return size


def find_reference(config: RunConfig) -> Reference:
    """What the run's merged model has to compute.

    Raises:
        StageError: MergeMismatch; a folder of what was trained holds nothing.
    """
    volume, projector_dir = config.volume, kept_projector_dir(config)
    replaced = list_tensors(projector_dir) if projector_dir is not None else {}
    adapter_dir = None
    match config.training.method:
        case "full":
            replaced |= list_tensors(volume.weights_dir)
        case "none" if config.model.adapter is None:
            pass
        case "none":
            adapter_dir = volume.given_adapter_dir
        case _:
            adapter_dir = volume.adapter_dir
    return Reference(base_dir=config.model_dir, adapter_dir=adapter_dir, replaced=replaced)


def build_reference(reference: Reference) -> Streamed:
    """The base, by transformers, with the adapter where there is one, by PEFT; no weight is read.

    Raises:
        StageError: InvalidModel; the base lacks a tensor. InternalError; the adapter lacks one, or has one that finds
            no place.
    """
    llava = build_empty(load_config(reference.base_dir))
    tied = tied_names(llava)
    base = {**find_tensors(reference.base_dir), **reference.replaced}
    adapted = _find_adapted(reference.adapter_dir)
    model: LlavaForConditionalGeneration | PeftModel = llava
    if reference.adapter_dir is not None:
        model = _adapt(llava, reference.adapter_dir)

    def find(name: str, hub: str | None) -> StoredTensor:
        stored = adapted.get(saved_name(name))
        if stored is None and hub is not None:
            stored = base.get(hub) or base.get(tied.get(hub, ""))
        if stored is None:
            raise StageError(Reason.INVALID_MODEL, f"{reference.base_dir} lacks {hub or name}: fetch it again")
        return stored

    return Streamed(model=model, blocks=cut_into_blocks(model, llava, find), tied=tied)


def _adapt(llava: LlavaForConditionalGeneration, adapter_dir: Path) -> PeftModel:
    try:
        settings = LoraConfig.from_pretrained(str(adapter_dir))
        # Where the base came from is not where it lies.
        settings.base_model_name_or_path = None
        model = get_peft_model(llava, settings, autocast_adapter_dtype=False, low_cpu_mem_usage=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise StageError(Reason.INTERNAL_ERROR, f"the adapter in {adapter_dir} cannot be loaded: {error}") from error
    check_adapter_names(model, adapter_dir)
    return model.eval()


def _find_adapted(folder: Path | None) -> dict[str, StoredTensor]:
    return {} if folder is None else {one.name: one for one in find_stored(folder / WEIGHTS_FILE)}
