"""An adapter that a run goes on from: held against base and settings, and written anew in the layout of our own.

What comes from outside ends here: later stages read PEFT's layout with names that are known, tensors of shapes that
fit, and settings that this module has written.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from pydantic import ValidationError

from llava_api.failures import Reason
from llava_api.spec import LORA_TARGETS, Lora, LoraTarget, Training
from llava_trainer.errors import StageError
from llava_trainer.files import begin_folder, publish_folder, tell_names
from llava_trainer.importing.folders import find_weights
from llava_trainer.importing.parts import NON_LORA_PICKLE
from llava_trainer.model.adapter_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterError,
    StoredAdapter,
    read_adapter_folder,
    stored_name,
    stored_pair_names,
)
from llava_trainer.model.layout import PROJECTOR, VISION_TOWER, hub_name
from llava_trainer.model.lora import target_modules
from llava_trainer.tensors.recipes import TensorRecipe
from llava_trainer.tensors.stored import TAGS, StoredTensor
from llava_trainer.tensors.writing import write_tensors

FIELD = "spec.model.adapter"
_LAYERS = "language_model.model.layers."
_ATTENTION: tuple[LoraTarget, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


def import_adapter(folder: Path, model_dir: Path, training: Training, target: Path) -> None:
    """Check the adapter in ``folder`` and write it to ``target``, aside first. It is small: each attempt does so anew.

    Args:
        folder: of the adapter, in PEFT's layout.
        model_dir: the base in hub layout.
        training: of the run. What it says of LoRA must be as in the adapter, unless nothing is trained.
        target: folder to write to.

    Raises:
        StageError: InvalidModel; the folder holds no whole adapter of plain LoRA, it was trained on another base or
            does nothing, or the run's settings are others.
    """
    adapter = _read(folder)
    base = {hub_name(name): tensor for name, tensor in find_weights(model_dir).items()}
    targets = _find_targets(adapter, base)
    _check_shapes(adapter, base)
    if training.method != "none":
        _check_settings(adapter, targets, training)
    aside = begin_folder(target)
    write_tensors(aside / WEIGHTS_FILE, list(_list_recipes(adapter)))
    config = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, use_rslora=adapter.is_rank_stabilised, bias="none",
        target_modules=target_modules(targets), modules_to_save=[PROJECTOR] if adapter.replaced else None,
        inference_mode=True,
    )  # fmt: skip
    config.save_pretrained(str(aside))
    publish_folder(target)


def _read(folder: Path) -> StoredAdapter:
    if (folder / NON_LORA_PICKLE).is_file():
        raise _invalid(
            f"{folder} is a LoRA of the original code, whose base is a language model: name it in spec.model.source, "
            "and that one in spec.model.base"
        )
    if not (folder / CONFIG_FILE).is_file():
        raise _invalid(
            f"{folder} holds no {CONFIG_FILE}, only {tell_names(folder)}: name the folder of an adapter that PEFT has "
            "saved; that of a run is adapter/ on its volume"
        )
    try:
        return read_adapter_folder(folder)
    except AdapterError as error:
        raise _invalid(f"{folder}: {error}") from error


def _find_targets(adapter: StoredAdapter, base: Mapping[str, StoredTensor]) -> tuple[LoraTarget, ...]:
    """Which linear layers it updates, the same ones in every layer.

    By its tensors: ``target_modules`` of a file from outside may be any regular expression.
    """
    targets = tuple(one for one in LORA_TARGETS if any(f".{one}." in name for name in adapter.pairs))
    num_layers = len({name.removeprefix(_LAYERS).split(".")[0] for name in base if name.startswith(_LAYERS)})
    wanted = {
        f"{_LAYERS}{number}.{'self_attn' if one in _ATTENTION else 'mlp'}.{one}.weight"
        for number in range(num_layers)
        for one in targets
    }
    if stray := sorted(adapter.pairs.keys() - wanted):
        raise _invalid(
            f"it updates {stray[0]}, which is none of {', '.join(LORA_TARGETS)} in the base's {num_layers} layers: "
            "only adapters of the language model's layers are gone on from"
        )
    if lacking := sorted(wanted - base.keys()):
        raise _invalid(f"the base has no {lacking[0]}: fetch the whole checkpoint that spec.model.source names")
    if missing := sorted(wanted - adapter.pairs.keys()):
        raise _invalid(
            f"it updates {', '.join(targets)}, but not {missing[0]} of the base: it was trained on another one"
        )
    return targets


def _check_shapes(adapter: StoredAdapter, base: Mapping[str, StoredTensor]) -> None:
    for name, pair in adapter.pairs.items():
        shape = (pair.b.shape[0], pair.a.shape[1])
        if shape != base[name].shape:
            raise _invalid(
                f"its update of {name} is {shape}, but in the base that is {base[name].shape}: it was trained on "
                "another one; name that in spec.model.source"
            )
    if not adapter.replaced:
        return
    tower = sorted(name for name in adapter.replaced if name.startswith(f"{VISION_TOWER}."))
    if tower:
        raise _invalid(
            f"it brings a vision tower that was trained ({tower[0]}), and only projectors are gone on from: name the "
            "merged/ of the run that made it in spec.model.source, and no adapter"
        )
    projector = {name: tensor.shape for name, tensor in base.items() if name.startswith(f"{PROJECTOR}.")}
    found = {name: tensor.shape for name, tensor in adapter.replaced.items()}
    if found != projector:
        name = min(name for name in found.keys() | projector.keys() if found.get(name) != projector.get(name))
        raise _invalid(
            f"what was trained beside it is not the base's projector: {name} is {found.get(name, 'missing')} in it, "
            f"and {projector.get(name, 'missing')} in the base"
        )


def _check_settings(adapter: StoredAdapter, targets: tuple[LoraTarget, ...], training: Training) -> None:
    """What is trained goes on from it, so that one adapter comes of both."""
    try:
        Lora(rank=adapter.rank, alpha=adapter.alpha)
    except ValidationError as error:
        name = {"rank": "r", "alpha": "lora_alpha"}[str(error.errors()[0]["loc"][0])]
        raise _invalid(
            f"its {name} is {adapter.rank if name == 'r' else adapter.alpha:g}, which spec.training.lora cannot say "
            f"({error.errors()[0]['msg']}): nothing goes on from it; training.method none merges and judges it"
        ) from error
    lora = training.lora
    compared = (
        ("lora.rank", lora.rank, adapter.rank),
        ("lora.alpha", lora.alpha, adapter.alpha),
        ("lora.rsLora", lora.rs_lora, adapter.is_rank_stabilised),
        ("lora.targets", sorted(lora.targets), sorted(targets)),
    )
    wrong = [f"{name} is {has} and must be {must}" for name, has, must in compared if has != must]
    if adapter.replaced and training.projector == "frozen":
        wrong.append("projector is frozen and must be train, since the adapter brings one that was trained")
    if wrong:
        raise _invalid(f"the run makes one adapter of it and of what it trains: in spec.training, {'; '.join(wrong)}")


def _list_recipes(adapter: StoredAdapter) -> Iterator[TensorRecipe]:
    effects = []
    for tensor in (*(one for pair in adapter.pairs.values() for one in (pair.a, pair.b)), *adapter.replaced.values()):
        if not tensor.dtype.is_floating_point:
            raise _invalid(
                f"{tensor.name} is stored as {TAGS[tensor.dtype]}: only floating-point tensors are gone on from"
            )

    def copy(tensor: StoredTensor, name: str, *, is_b: bool = False) -> TensorRecipe:
        def make() -> torch.Tensor:
            values = tensor.read()
            if not torch.isfinite(values).all():
                raise _invalid(f"{tensor.name} holds values that are not finite: the adapter is damaged")
            if is_b:
                effects.append(bool(values.any()))
                if len(effects) == len(adapter.pairs) and not any(effects):
                    raise _invalid("every LoRA B matrix is zero: it has not learned anything")
            return values

        return TensorRecipe(name=name, dtype=tensor.dtype, shape=tensor.shape, make=make)

    for name, pair in adapter.pairs.items():
        a, b = stored_pair_names(name)
        yield copy(pair.a, a)
        yield copy(pair.b, b, is_b=True)
    for name, tensor in adapter.replaced.items():
        yield copy(tensor, stored_name(name))


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, f"{FIELD}: {message}")
