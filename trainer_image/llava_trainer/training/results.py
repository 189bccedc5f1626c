"""What training leaves on the volume, by method, and making sure that it arrived: written aside, read back, renamed.

Every process calls ``publish_result``: under ZeRO-3 a parameter is whole only while all of them take part. The first
one writes.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_api.volume import RunVolume
from llava_trainer.errors import StageError
from llava_trainer.files import aside_of, begin_folder, publish_folder
from llava_trainer.model.layout import hub_name
from llava_trainer.model.partition import copy_whole, num_elements, whole
from llava_trainer.model.projector import CONFIG_FILE, WEIGHTS_FILE, dump_projector_config, projector_parameters
from llava_trainer.training.adapter import check_saved, publish_adapter
from llava_trainer.training.tensors import save_tensors
from llava_trainer.training.trainee import Trainee, watched_parameters

MAX_SHARD_BYTES = 2 * 10**9
"""Largest file of full weights, and what the first process holds of them in memory besides its share."""
INDEX_FILE = "model.safetensors.index.json"
"""As transformers names it, so that whatever reads a checkpoint reads these weights too."""


def publish_result(trainee: Trainee, volume: RunVolume, *, is_first: bool) -> None:
    """Write what was trained: the adapter, the projector alone, or language model and projector.

    Args:
        trainee: what was trained.
        volume: the run's.
        is_first: whether this process writes for all; every process calls it.

    Raises:
        StageError: InternalError; what was written is not what is live. AdapterUnchanged; nothing was learned.
        OSError: it cannot be written.
    """
    if isinstance(trainee.tuned, PeftModel):
        publish_adapter(trainee.tuned, volume.adapter_dir, is_first=is_first)
        return
    check_changed(trainee)
    if trainee.phase.method == "full":
        publish_weights(trainee.llava, volume.weights_dir, is_first=is_first)
    else:
        publish_projector(trainee.llava, volume.projector_dir, is_first=is_first)


def check_changed(trainee: Trainee) -> None:
    """Make sure that projector and, where it is trained, language model are not as they were.

    Raises:
        StageError: AdapterUnchanged, naming what did not learn.
    """
    live = {name: copy_whole(p) for name, p in watched_parameters(trainee.llava, trainee.phase).items()}
    for part in sorted({name.partition(".")[0] for name in live}):
        names = [name for name in live if name.startswith(f"{part}.")]
        if all(torch.equal(live[name], trainee.beginning[name]) for name in names):
            raise StageError(
                Reason.ADAPTER_UNCHANGED,
                f"{names[0]} is as it was before training, so {part} did not learn at a peak learning rate of "
                f"{trainee.phase.learning_rate:.3g}",
            )


def publish_projector(llava: LlavaForConditionalGeneration, folder: Path, *, is_first: bool) -> None:
    """Write the projector: what phase 1 hands on to phase 2."""
    weights = {name: copy_whole(parameter) for name, parameter in projector_parameters(llava).items()}
    if not is_first:
        return
    aside = begin_folder(folder)
    save_tensors(weights, aside / WEIGHTS_FILE)
    (aside / CONFIG_FILE).write_text(dump_projector_config(llava.config), encoding="utf-8")
    check_saved(weights, aside / WEIGHTS_FILE)
    publish_folder(folder)


def publish_weights(
    llava: LlavaForConditionalGeneration, folder: Path, *, is_first: bool, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write everything that was trained whole under its hub names, one file of it in memory at a time."""
    learning = {hub_name(name): parameter for name, parameter in llava.named_parameters() if parameter.requires_grad}
    shards = cut_into_shards(learning, max_shard_bytes)
    aside = begin_folder(folder) if is_first else aside_of(folder)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = aside / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, file.name)
        _write_shard(file, shard, is_first=is_first)
    if is_first:
        index = {"metadata": {"total_size": sum(map(_num_bytes, learning.values()))}, "weight_map": weight_map}
        (aside / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        publish_folder(folder)


def cut_into_shards(named: Mapping[str, nn.Parameter], max_bytes: int) -> list[dict[str, nn.Parameter]]:
    """Cut ``named`` into files of at most ``max_bytes``, but for single parameters that are larger."""
    shards: list[dict[str, nn.Parameter]] = []
    room = 0
    for name, parameter in named.items():
        if not shards or _num_bytes(parameter) > room:
            shards.append({})
            room = max_bytes
        shards[-1][name] = parameter
        room -= _num_bytes(parameter)
    return shards


def _write_shard(file: Path, shard: Mapping[str, nn.Parameter], *, is_first: bool) -> None:
    tensors = {}
    for name, parameter in shard.items():
        with whole([parameter]):
            if is_first:
                tensors[name] = parameter.detach().to("cpu", copy=True)
    if is_first:
        save_tensors(tensors, file)
        check_saved(tensors, file)


def _num_bytes(parameter: nn.Parameter) -> int:
    return num_elements(parameter) * parameter.element_size()
