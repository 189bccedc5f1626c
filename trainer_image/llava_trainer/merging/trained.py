"""What a run's training left on its volume, by method: as changes to merge, and as a model to prove the merge with."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.merging.adapter import read_adapter
from llava_trainer.merging.changes import Changes
from llava_trainer.model.layout import LANGUAGE_MODEL, PROJECTOR
from llava_trainer.model.loading import load_model, load_trained, load_tuned
from llava_trainer.model.projector import load_projector
from llava_trainer.weights.stored import StoredTensor, find_stored


def read_changes(config: RunConfig) -> Changes:
    """What training changes in the run's base.

    Raises:
        StageError: MergeMismatch; what it left is incomplete, or more than merging understands. InvalidModel; a file of
            it is damaged.
    """
    volume = config.volume
    match config.training.method:
        case "full":
            return Changes(
                what="the folder of trained weights",
                replaced=_list_tensors(volume.weights_dir),
                whole=(f"{LANGUAGE_MODEL}.", f"{PROJECTOR}."),
            )
        case "none":
            return Changes(
                what="the aligned projector",
                replaced=_list_tensors(volume.projector_dir),
                whole=(f"{PROJECTOR}.",),
            )
        case _:
            return read_adapter(volume.adapter_dir)


def load_reference(config: RunConfig) -> PeftModel | LlavaForConditionalGeneration:
    """The base with what was trained, in fp32: PEFT's own where there is an adapter.

    Raises:
        StageError: base or what was trained cannot be loaded, or do not belong together.
    """
    volume = config.volume
    match config.training.method:
        case "full":
            return load_trained(config.model_dir, volume.weights_dir, torch.float32, "cpu")
        case "none":
            llava = load_model(config.model_dir, torch.float32, "cpu")
            load_projector(llava, volume.projector_dir)
            return llava
        case _:
            return load_tuned(config.model_dir, volume.adapter_dir, torch.float32, "cpu")


def _list_tensors(folder: Path) -> dict[str, StoredTensor]:
    found = {tensor.name: tensor for file in sorted(folder.glob("*.safetensors")) for tensor in find_stored(file)}
    if not found:
        raise StageError(Reason.MERGE_MISMATCH, f"{folder} holds no tensor: training did not leave what it trained")
    return found
