"""What training leaves on the volume, by method, and making sure that it arrived: written aside, read back, renamed.

Every rank calls ``publish_result``: under ZeRO-3 a parameter is whole only while all of them take part. The first
one writes.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_api.volume import RunVolume
from llava_trainer.errors import StageError
from llava_trainer.files import begin_folder, make_folder, publish_folder
from llava_trainer.gang.world import World
from llava_trainer.model.layout import hub_name
from llava_trainer.model.partition import copy_whole, shape_of, whole
from llava_trainer.model.projector import CONFIG_FILE, WEIGHTS_FILE, dump_projector_config, projector_parameters
from llava_trainer.tensors.recipes import TensorRecipe
from llava_trainer.tensors.stored import find_stored
from llava_trainer.tensors.writing import MAX_SHARD_BYTES, save_tensors, write_checkpoint
from llava_trainer.training.adapter import check_saved, publish_adapter
from llava_trainer.training.model_under_training import ModelUnderTraining, watched_parameters


def publish_result(
    model: ModelUnderTraining, volume: RunVolume, world: World, check: Callable[[], None] = lambda: None
) -> None:
    """Write what was trained: the adapter, the projector alone, or language model and projector.

    Args:
        model: what was trained.
        volume: the run's.
        world: all of them; each calls this, and the first one writes.
        check: called there before the result is completed; raises if this attempt does not count any more.

    Raises:
        StageError: InternalError; what was written is not what is live. AdapterUnchanged; nothing was learned.
        OSError: it cannot be written.
    """
    if isinstance(model.tuned, PeftModel):
        publish_adapter(
            model.tuned, volume.adapter_dir, is_first=world.is_first, check=check, given=model.given_adapter
        )
        return
    check_changed(model)
    if model.phase.method == "full":
        publish_weights(model.llava, volume.weights_dir, is_first=world.is_first, keep_step=world.barrier, check=check)
    else:
        publish_projector(model.llava, volume.projector_dir, is_first=world.is_first, check=check)


def check_changed(model: ModelUnderTraining) -> None:
    """Make sure that projector and, where it is trained, language model are not as they were.

    Raises:
        StageError: AdapterUnchanged, naming what did not learn.
    """
    live = {name: copy_whole(p) for name, p in watched_parameters(model.llava, model.phase).items()}
    for part in sorted({name.partition(".")[0] for name in live}):
        names = [name for name in live if name.startswith(f"{part}.")]
        if all(torch.equal(live[name], model.initial_weights[name]) for name in names):
            raise StageError(
                Reason.ADAPTER_UNCHANGED,
                f"{names[0]} is as it was before training, so {part} did not learn at a peak learning rate of "
                f"{model.phase.training.peak_learning_rate:.3g}",
            )


def publish_projector(
    llava: LlavaForConditionalGeneration, folder: Path, *, is_first: bool, check: Callable[[], None] = lambda: None
) -> None:
    """Write the projector: what phase 1 hands on to phase 2."""
    weights = {name: copy_whole(parameter) for name, parameter in projector_parameters(llava).items()}
    if not is_first:
        return
    aside = begin_folder(folder)
    write_projector(llava, weights, aside)
    check_saved(weights, aside / WEIGHTS_FILE)
    check()
    publish_folder(folder)


def write_projector(llava: LlavaForConditionalGeneration, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write a projector of ``llava`` (tensors by hub name) into ``folder``."""
    make_folder(folder)
    save_tensors(weights, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(dump_projector_config(llava.config), encoding="utf-8")


def publish_weights(
    llava: LlavaForConditionalGeneration,
    folder: Path,
    *,
    is_first: bool,
    keep_step: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write everything that was trained whole under its hub names, one tensor in memory at a time.

    Args:
        llava: what was trained.
        folder: where it goes.
        is_first: whether this rank writes for all; every rank calls it.
        keep_step: waits for the other ranks. Called twice a tensor, once it is written and once it is read back:
            the others would not wait as long for all of a large model on a slow volume.
        check: as in ``publish_result``.
        max_shard_bytes: where to begin the next file.
    """
    learned = {hub_name(name): parameter for name, parameter in llava.named_parameters() if parameter.requires_grad}
    if not is_first:
        for parameter in learned.values():
            with whole([parameter]):
                pass
            keep_step()
        for _ in learned:
            keep_step()
        return
    digests = {}

    def copy(name: str, parameter: nn.Parameter) -> torch.Tensor:
        tensor = copy_whole(parameter)
        digests[name] = digest(tensor)
        return tensor

    recipes = [
        TensorRecipe(name=name, dtype=parameter.dtype, shape=shape_of(parameter), make=partial(copy, name, parameter))
        for name, parameter in learned.items()
    ]
    aside = begin_folder(folder)
    write_checkpoint(aside, recipes, on_tensor=lambda done, total: keep_step(), max_shard_bytes=max_shard_bytes)
    check_written(aside, digests, keep_step)
    check()
    publish_folder(folder)


def check_written(folder: Path, digests: Mapping[str, str], keep_step: Callable[[], None]) -> None:
    """Read back what was written, tensor by tensor, and call ``keep_step`` after each.

    Raises:
        StageError: InternalError, naming the tensor that is not what was trained.
    """
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for tensor in find_stored(file):
            found[tensor.name] = digest(tensor.read())
            keep_step()
    wrong = sorted(name for name in found.keys() | digests.keys() if found.get(name) != digests.get(name))
    if wrong:
        raise StageError(Reason.INTERNAL_ERROR, f"{folder}: {wrong[0]} is not what was trained ({len(wrong)} in all)")


def digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's numbers as they lie in memory."""
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
