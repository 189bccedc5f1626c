"""Where a run's model and datasets are: found or fetched by prepare, written down once, read by every stage.

``run.json`` says what the operator knows; ``inputs.json`` on the volume says where prepare found or put things. The
two are read together here and nowhere else.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from llava_api.base import Lenient
from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.files import write_whole
from llava_trainer.reporting import Reporter

if TYPE_CHECKING:
    from llava_trainer.sources.fetching import Input, Surroundings

logger = logging.getLogger(__name__)


Layout = Literal["hub", "original", "assembled"]


class Inputs(Lenient):
    """What ``inputs.json`` holds."""

    version: Literal[1] = 1
    model_dir: Path
    """The model in hub layout."""
    dataset_dir: Path
    alignment_dir: Path | None = None
    model_layout: Layout = "hub"
    """What the model was before (``ModelFacts.layout``)."""
    origins: Annotated[dict[str, str], Field(default_factory=dict)]
    """Every source by its role, with the commit of hub repositories."""

    @property
    def model_origin(self) -> str:
        """Where the model came from; of one that was put together, its language model."""
        return self.origins.get("model") or self.origins.get("language-model") or ""


def load_run_config(path: Path) -> RunConfig:
    """Read a run configuration; stages after prepare get the folders that it found or made.

    Raises:
        OSError: the file cannot be read.
        ValidationError: it is no run configuration, or what prepare left is damaged.
    """
    config = RunConfig.model_validate_json(path.read_bytes())
    if config.run.stage is StageName.PREPARE:
        return config
    inputs = read_inputs(config)
    return config if inputs is None else _with(config, inputs)


def read_inputs(config: RunConfig) -> Inputs | None:
    """What prepare wrote down; None if it has not."""
    try:
        return Inputs.model_validate_json(config.volume.inputs_file.read_bytes())
    except FileNotFoundError:
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
    model_dir, layout = _provide_model(config, found)
    alignment = found.get("alignment-dataset")
    inputs = Inputs(
        model_dir=model_dir,
        dataset_dir=found["dataset"].path,
        alignment_dir=alignment.path if alignment else None,
        model_layout=layout,
        origins={role: one.origin for role, one in found.items()},
    )
    write_whole(config.volume.inputs_file, inputs.model_dump_json(indent=2) + "\n")
    for role, one in found.items():
        logger.info("%s: %s is at %s", role, one.origin, one.path)
    return _with(config, inputs)


def _with(config: RunConfig, inputs: Inputs) -> RunConfig:
    return config.model_copy(
        update={
            "model_dir": inputs.model_dir,
            "dataset_dir": inputs.dataset_dir,
            "alignment_dir": inputs.alignment_dir,
        }
    )


def _provide_model(
    config: RunConfig, found: dict[str, "Input"]
) -> tuple[Path, Layout]:
    """The folder of the model in hub layout, and what layout it had."""
    source = found["model"].path if "model" in found else config.model_dir
    others = sorted(found.keys() & {"base", "language-model", "vision-tower", "projector"})
    if not others and is_hub_layout(source):
        return source, "hub"
    raise StageError(
        Reason.INVALID_MODEL,
        f"spec.model.source: {source} is no LLaVA checkpoint in hub layout (config.json with text_config and "
        "vision_config)",
    )


def is_hub_layout(folder: Path) -> bool:
    """Whether a model can be read where it is; also where it has no readable config.json, which its reader tells."""
    try:
        settings = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return True
    return not isinstance(settings, dict) or ("text_config" in settings and "vision_config" in settings)
