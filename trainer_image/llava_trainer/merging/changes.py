"""What a run changes in a base's tensors, whichever method it was: by a product of two matrices, or whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.data.model_config import load_config
from llava_trainer.errors import StageError
from llava_trainer.model.adapter_folder import AdapterError, StoredAdapter, is_target, read_adapter_folder
from llava_trainer.model.layout import PROJECTOR
from llava_trainer.model.learning import trained_whole
from llava_trainer.tensors.lora import LoraPair
from llava_trainer.tensors.stored import StoredTensor, find_stored


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What was trained, by hub name of the base's tensors."""

    what: str
    """What holds them, for messages: ``the adapter``."""
    pairs: Mapping[str, LoraPair] = field(default_factory=dict)
    """Tensors that get an update."""
    replaced: Mapping[str, StoredTensor]
    """Tensors that were trained whole."""
    targets: str | tuple[str, ...] = ()
    """What must have an update, as PEFT's ``target_modules``: one pattern for the whole module name, or endings."""
    whole: tuple[str, ...]
    """What must have been trained whole: beginnings of hub names."""

    def must_update(self, hub: str) -> bool:
        """Whether the tensor with this hub name has to have an update."""
        return is_target(self.targets, hub)

    def must_replace(self, hub: str) -> bool:
        """Whether the tensor with this hub name has to have been trained whole."""
        return hub.startswith(self.whole)


def read_changes(config: RunConfig) -> Changes:
    """What the run changes in its base.

    Raises:
        StageError: MergeMismatch; what it left is incomplete, or more than merging understands. InvalidModel; a file of
            it is damaged.
    """
    volume, learned = config.volume, trained_whole(config.training, load_config(config.model_dir))
    projector_dir = kept_projector_dir(config)
    aligned = list_tensors(projector_dir) if projector_dir else {}
    kept = (f"{PROJECTOR}.",) if projector_dir else ()
    match config.training.method:
        case "full":
            replaced = list_tensors(volume.weights_dir)
            made = Changes(what="the folder of trained weights", replaced=replaced, whole=learned)
        case "none" if config.model.adapter is not None:
            made = _read_given_adapter(volume.given_adapter_dir)
        case "none":
            made = Changes(what="the aligned projector", replaced={}, whole=learned)
        case _:
            made = read_adapter(volume.adapter_dir, learned)
    return replace(made, replaced={**aligned, **made.replaced}, whole=kept + made.whole)


def kept_projector_dir(config: RunConfig) -> Path | None:
    """Folder of the projector that alignment has made and nothing has trained since; None where there is none."""
    training, is_aligned = config.training, config.alignment is not None
    aligns_alone = training.method == "none" and config.model.adapter is None
    return config.volume.projector_dir if aligns_alone or (is_aligned and training.projector == "frozen") else None


def read_adapter(folder: Path, learned: tuple[str, ...] = (f"{PROJECTOR}.",)) -> Changes:
    """Read what the adapter in ``folder`` does.

    Args:
        folder: of the adapter.
        learned: beginnings of the hub names of what was trained whole beside it.

    Raises:
        StageError: it is incomplete, holds tensors that nothing uses, or asks for more than plain LoRA.
    """
    return _changes_of(_read_folder(folder), learned)


def _read_folder(folder: Path) -> StoredAdapter:
    try:
        return read_adapter_folder(folder)
    except AdapterError as error:
        raise _mismatch(f"{error}: training did not leave a whole adapter of plain LoRA in {folder}") from error


def _changes_of(stored: StoredAdapter, learned: tuple[str, ...]) -> Changes:
    stray = sorted(name for name in stored.replaced if not name.startswith(learned))
    if stray:
        raise _mismatch(f"the adapter holds {stray[0]}, which this run has not trained")
    if f"{PROJECTOR}." in learned and not any(name.startswith(f"{PROJECTOR}.") for name in stored.replaced):
        raise _mismatch(f"the adapter holds no {PROJECTOR} tensor: the trained projector was not saved")
    return Changes(
        what="the adapter", pairs=stored.pairs, replaced=stored.replaced, targets=stored.targets, whole=learned
    )


def _read_given_adapter(folder: Path) -> Changes:
    """What an adapter does that was given and not trained; prepare has made sure that it is whole."""
    stored = _read_folder(folder)
    return _changes_of(stored, (f"{PROJECTOR}.",) if stored.replaced else ())


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Tensors that training has left in a folder of weights, by hub name.

    Raises:
        StageError: MergeMismatch; there are none.
    """
    found = {tensor.name: tensor for file in sorted(folder.glob("*.safetensors")) for tensor in find_stored(file)}
    if not found:
        raise _mismatch(f"{folder} holds no tensor: training did not leave what it trained")
    return found


def _mismatch(message: str) -> StageError:
    return StageError(Reason.MERGE_MISMATCH, message)
