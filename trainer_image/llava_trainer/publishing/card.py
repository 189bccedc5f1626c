"""README.md of what is published: the model card, for people and for the hub, made from what the run has written down.

What it says is in ``pages/templates/card.md``; this gathers it. It says nothing of attempts, of the time of publishing
or of destinations, so that publishing again gives the same bytes. Nothing of others' texts is markup in it
(``rendering``).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from llava_api.constants import StageName
from llava_api.report import StageResult
from llava_api.run_config import RunConfig
from llava_api.spec import Dataset
from llava_api.text import show
from llava_trainer.attempts.finished import read_earlier_result
from llava_trainer.data.dataset_report import DatasetReport, Side
from llava_trainer.evaluation.page import find_primary
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.evaluation.settings import list_settings
from llava_trainer.evaluation.summary import METRIC_TITLES
from llava_trainer.inputs import Inputs, read_inputs
from llava_trainer.merging.manifest import Manifest as MergeManifest
from llava_trainer.pages.rendering import render_markdown
from llava_trainer.publishing.card_limits import list_limits
from llava_trainer.publishing.card_metadata import build_metadata, hub_id_of
from llava_trainer.publishing.content import What

_ROLES = {
    "model": "Model", "base": "Base of what was given", "language-model": "Language model",
    "vision-tower": "Vision tower", "projector": "Projector", "adapter": "Adapter that training went on from",
}  # fmt: skip
_COMMIT = re.compile(r"[0-9a-f]{40}")
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the run has written down, as far as cards tell it."""

    config: RunConfig
    inputs: Inputs | None
    dataset: DatasetReport
    metrics: Metrics
    merged: MergeManifest
    trained: StageResult | None
    merging: StageResult | None


@dataclass(frozen=True, kw_only=True)
class DataRow:
    """One set of samples."""

    role: str
    source: str
    side: Side


def read_known(config: RunConfig, merged: MergeManifest) -> Known:
    """Read it.

    Raises:
        OSError: a file of an earlier stage is missing.
        ValidationError: one is damaged.
    """
    stages = config.stages_before
    return Known(
        config=config,
        inputs=read_inputs(config),
        dataset=DatasetReport.model_validate_json(config.volume.dataset_report_json.read_bytes()),
        metrics=Metrics.model_validate_json(config.volume.metrics_file.read_bytes()),
        merged=merged,
        trained=read_earlier_result(config, StageName.TRAIN) if StageName.TRAIN in stages else None,
        merging=read_earlier_result(config, StageName.MERGE),
    )


def build_card(known: Known, what: What) -> str:
    """The card of the merged model, or of the adapter."""
    config, merged, metrics = known.config, known.merged, known.metrics
    inputs = known.inputs
    base_id = hub_id_of(merged.origin.base or "") if inputs is None or inputs.model_layout == "hub" else None
    revision = merged.origin.base_revision or ""
    why_not_served = _say_why_not_served(config)
    license_name = config.publish.license if config.publish is not None else None
    text = render_markdown(
        "card.md",
        title=config.run.name if what == "merged" else f"{config.run.name}: adapter",
        what=what,
        base=_tell_base(merged),
        made=_tell_making(config),
        is_learned=config.training.method != "none",
        base_code=Markup(base_id or "BASE"),
        base_is_placeholder=base_id is None,
        base_hint=Markup("folder of the base in hub layout, as the run had it"),
        base_revision=Markup(revision) if base_id is not None and _COMMIT.fullmatch(revision) else "",
        license=license_name,
        sources=_list_sources(inputs),
        data=_list_data(config, known.dataset),
        dataset=known.dataset,
        settings=list_settings(config, with_layout=False),
        training=known.trained.train if known.trained is not None else None,
        merging=known.merging.merge if known.merging is not None and what == "merged" else None,
        merged=merged,
        metrics=metrics,
        metric_titles=METRIC_TITLES,
        primary=find_primary(metrics),
        limits=list_limits(known.dataset, metrics, config),
        serves_as_adapter=why_not_served is None,
        why_not_served=why_not_served,
        lora_rank=next((rank for rank in _RANKS if rank >= config.training.lora.rank), _RANKS[-1]),
        is_signed=config.publish is not None and config.publish.signing is not None,
    )
    origins = inputs.origins if inputs is not None else {}
    return f"{build_metadata(config, what, origins, metrics, license_name)}\n{text}"


def _tell_base(merged: MergeManifest) -> str:
    name = show(merged.origin.base or "a model that nothing names")
    return f"{name} ({show(merged.origin.base_revision)})" if merged.origin.base_revision else name


def _tell_making(config: RunConfig) -> str:
    """What has become of the base."""
    if config.training.method != "none":
        return "fine-tuned and merged"
    aligned = ", with a projector that was aligned by the run" if config.alignment is not None else ""
    if config.model.adapter is not None:
        return f"merged with an adapter that the run was given{aligned}"
    return aligned.removeprefix(", ") or "as the run was given it: nothing was trained"


def _list_sources(inputs: Inputs | None) -> Sequence[tuple[str, str]]:
    origins = inputs.origins if inputs is not None else {}
    return [(title, show(origins[role])) for role, title in _ROLES.items() if role in origins]


def _list_data(config: RunConfig, report: DatasetReport) -> Sequence[DataRow]:
    own = _tell_dataset(config.dataset)
    is_learned = config.training.method != "none"
    rows = [DataRow(role="Learned from" if is_learned else "Not learned from", source=own, side=report.train)]
    rows += [
        DataRow(
            role=f"Mixed in, {mixed.share:.0%} of an epoch", source=_tell_dataset(part.dataset),
            side=mixed.dataset.train,
        )
        for part, mixed in zip(config.mixture, report.mixture, strict=False)
    ]  # fmt: skip
    if config.alignment is not None and report.alignment is not None:
        aligned = _tell_dataset(config.alignment.dataset)
        rows.append(DataRow(role="Aligned by", source=aligned, side=report.alignment.train))
    if report.selection is not None:
        rows.append(DataRow(role="Held out, selects a step", source=own, side=report.selection))
    rows.append(DataRow(role="Held out, scored", source=own, side=report.validation))
    if config.evaluation.retention is not None and report.retention is not None:
        kept = _tell_dataset(config.evaluation.retention.dataset)
        rows.append(DataRow(role="Not to be forgotten, scored", source=kept, side=report.retention.train))
    return rows


def _tell_dataset(dataset: Dataset) -> str:
    return f"{show(dataset.source)} · {show(dataset.file)} ({dataset.format})"


def _say_why_not_served(config: RunConfig) -> str | None:
    """Why no server loads the adapter beside a base; None where one does (docs/serving.md)."""
    training = config.training
    if training.vision_tower.mode == "full":
        return "Servers load no adapter that brings a vision tower."
    if training.projector == "train":
        return "Servers load no adapter that brings a projector, as this one does."
    if config.alignment is not None:
        return (
            "It belongs to the base with the projector that the run's alignment has made, which is not in this folder."
        )
    return None
