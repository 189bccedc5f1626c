"""Where a run's model and datasets are: found or fetched by prepare, written down once, read by every stage.

``run.json`` says what the operator knows; ``inputs.json`` on the volume says where prepare found or put things. The
two are read together here and nowhere else.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from llava_api.base import Lenient
from llava_api.constants import SecretRole, StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.files import write_whole
from llava_trainer.reporting import Reporter

if TYPE_CHECKING:
    from llava_trainer.importing import ImportedModel
    from llava_trainer.sources.fetching import Input, Surroundings

_MAX_ORIGIN = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """How an adapter names the model that it belongs to."""

    name: str
    """A hub id, or the address of the source; never a path of the run's volume, and nothing secret."""
    revision: str | None = None
    """The commit of a hub id."""


class Inputs(Lenient):
    """What ``inputs.json`` holds."""

    version: Literal[1] = 1
    model_dir: Path
    """The model in hub layout. This folder and the others are told from where ``inputs.json`` lies if they are below
    that, because another attempt may take them over; else (on claims) from the root."""
    dataset_dir: Path
    alignment_dir: Path | None = None
    mixture_dirs: tuple[Path, ...] = ()
    retention_dir: Path | None = None
    model_layout: Literal["hub", "original", "assembled"] = "hub"
    """What the model was before (``ModelFacts.layout``)."""
    origins: Annotated[dict[str, str], Field(default_factory=dict)]
    """Every source by its role, with the commit of hub repositories."""

    @property
    def base_model(self) -> "BaseModel | None":
        """What the model that training starts from is called outside of this run; None if nothing tells.

        Only where the hub has it as it is trained is it a hub id: one of LLaVA's own layout, or of a language model
        that was joined with a tower, could not be loaded by that name.
        """
        origin = self.origins.get("model") or self.origins.get("language-model")
        if not origin:
            return None
        scheme, _, rest = origin.partition("://")
        if scheme != "hf" or self.model_layout != "hub":
            return BaseModel(name=origin)
        repository, _, commit = rest.partition("@")
        return BaseModel(name=repository, revision=commit or None)

    @property
    def model_origin(self) -> str:
        """Where the model came from, as far as the status has room; of one put together, its language model."""
        origin = self.origins.get("model") or self.origins.get("language-model") or ""
        return origin if len(origin) <= _MAX_ORIGIN else f"{origin[: _MAX_ORIGIN - 1]}…"


def load_run_config(path: Path, stage: StageName) -> RunConfig:
    """Read the run configuration of a stage; those after prepare get the folders that it found or made.

    Raises:
        OSError: the file cannot be read.
        ValidationError: it is no run configuration, or what prepare left is damaged.
        StageError: InvalidConfig; it is another stage's, or does not say which attempts' results to read.
    """
    config = RunConfig.model_validate_json(path.read_bytes())
    if config.run.stage != stage:
        raise StageError(
            Reason.INVALID_CONFIG, f"{path}: run.stage is {config.run.stage}, but the command was to run {stage}"
        )
    if config.run.stage is StageName.PREPARE:
        return config
    _check_results(path, config)
    inputs = read_inputs(config)
    return config if inputs is None else _with(config, inputs)


def read_inputs(config: RunConfig) -> Inputs | None:
    """What prepare wrote down; None if it has not."""
    file = config.volume.inputs_file
    try:
        inputs = Inputs.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    # A path from the root stays what it is.
    return _replace_folders(inputs, lambda folder: file.parent / folder)


def find_damaged_input(attempt_dir: Path) -> str | None:
    """What prepare has fetched in an attempt and is not there as it came; None if everything is.

    What was unpacked of archives is not compared: it was read, image by image, when it was checked.
    """
    from llava_trainer.sources.archive import ARCHIVE_SUFFIX, MARKER
    from llava_trainer.sources.fetched import JOURNAL
    from llava_trainer.sources.journal import find_damaged

    downloads = attempt_dir / "inputs" / "downloads"
    for archive in (marker.parent for marker in downloads.glob(f"*{ARCHIVE_SUFFIX}/{MARKER}")):
        unpacked = archive.with_name(archive.name.removesuffix(ARCHIVE_SUFFIX))
        if not unpacked.is_dir():
            return f"{unpacked} is missing"
    for state in (journal.parent for journal in downloads.glob(f".*.state/{JOURNAL}")):
        folder = state.with_name(state.name.removeprefix(".").removesuffix(".state"))
        # An archive is thrown away when it is unpacked.
        if not folder.name.endswith(ARCHIVE_SUFFIX) and (damaged := find_damaged(folder)) is not None:
            return f"{folder / damaged} is not what was fetched"
    return None


def provide_inputs(config: RunConfig, reporter: Reporter, surroundings: "Surroundings | None" = None) -> RunConfig:
    """Fetch what is not on a claim, make the model one in hub layout, and write down where everything is.

    Args:
        config: of the prepare stage.
        reporter: told what is fetched and how much of it.
        surroundings: what the operator mounts; None for its places.

    Returns:
        The configuration with the folders to read.

    Raises:
        StageError: SourceRefused, SourceUnavailable, StorageFull or InvalidModel, naming the field and the fix.
    """
    # Here, and not above: every stage imports this module, and only prepare fetches.
    from llava_trainer.sources.fetching import fetch_inputs

    found = fetch_inputs(config, reporter, surroundings)
    model = _provide_model(config, found, reporter)
    if (adapter := found.get("adapter")) is not None:
        from llava_trainer.importing.adapter import import_adapter

        import_adapter(adapter.path, model.model_dir, config.training, config.volume.given_adapter_dir)
    alignment = found.get("alignment-dataset")
    retention = found.get(SecretRole.RETENTION)
    inputs = Inputs(
        model_dir=model.model_dir,
        dataset_dir=found["dataset"].path,
        alignment_dir=alignment.path if alignment else None,
        mixture_dirs=tuple(found[SecretRole.of_mixture(index)].path for index in range(len(config.mixture))),
        retention_dir=retention.path if retention else None,
        model_layout=model.layout,
        origins={role: one.origin for role, one in found.items()},
    )
    told = _replace_folders(inputs, partial(_tell_from, config.volume.inputs_dir))
    write_whole(config.volume.inputs_file, told.model_dump_json(indent=2) + "\n")
    for role, one in found.items():
        logger.info("%s: %s is at %s", role, one.origin, one.path)
    return _with(config, inputs)


def _replace_folders(inputs: Inputs, replace: Callable[[Path], Path]) -> Inputs:
    folders = {name: getattr(inputs, name) for name in ("model_dir", "dataset_dir", "alignment_dir", "retention_dir")}
    update = {name: folder and replace(folder) for name, folder in folders.items()}
    return inputs.model_copy(update={**update, "mixture_dirs": tuple(map(replace, inputs.mixture_dirs))})


def _tell_from(folder: Path, path: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _check_results(path: Path, config: RunConfig) -> None:
    """Make sure that the configuration says which attempts' results count."""
    stage = config.run.stage
    if config.version == 1:
        raise StageError(
            Reason.INVALID_CONFIG,
            f"{path}: version is 1, but {stage} needs version 2, which says where results are (results): the operator "
            "is older than the trainer image; use the image of the operator's version, or a newer operator",
        )
    missing = [one for one in config.stages_before if one not in config.results]
    if missing:
        raise StageError(
            Reason.INVALID_CONFIG,
            f"{path}: results.{missing[0]} is missing: {stage} must be told which attempt of {missing[0]} counts",
        )


def _with(config: RunConfig, inputs: Inputs) -> RunConfig:
    return config.model_copy(
        update={
            "model_dir": inputs.model_dir,
            "dataset_dir": inputs.dataset_dir,
            "alignment_dir": inputs.alignment_dir,
            "mixture_dirs": inputs.mixture_dirs,
            "retention_dir": inputs.retention_dir,
        }
    )


def _provide_model(config: RunConfig, found: dict[str, "Input"], reporter: Reporter) -> "ImportedModel":
    """The model in hub layout: where it lies if it has that layout, else made on the run's volume."""
    from llava_trainer.importing import ModelParts, import_model

    def part(role: str) -> Path | None:
        return found[role].path if role in found else None

    parts = ModelParts(
        # A run's configuration made by hand names the folder alone.
        source=part("model") or (None if "language-model" in found else config.model_dir),
        base=part("base"),
        language_model=part("language-model"),
        vision_tower=part("vision-tower"),
        projector=part("projector"),
    )
    return import_model(
        parts,
        config.volume.model_dir,
        seed=config.training.seed,
        on_tensor=lambda done, total: reporter.update(done, total, message="writing the model in hub layout"),
    )
