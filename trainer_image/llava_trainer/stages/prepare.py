"""Prepare: look at everything that would fail later, before a GPU is taken, and write down what there is to learn.

What lies on a claim is read in place, the rest is fetched once. The dataset report is written whether the data is
accepted or not; the sample files only if it is. Another attempt takes over what an earlier one has fetched, and makes
the same files.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.optimizer_steps import choose_global_batch, describe_choice, settle_batch
from llava_api.report import MicroBatch
from llava_api.run_config import RUN_CONFIG_VERSION, RunConfig
from llava_api.text import show
from llava_trainer.data.dataset import PreparedDataset, compare_phases, find_relearned, prepare_dataset, withhold
from llava_trainer.data.dataset_page import build_dataset_page
from llava_trainer.data.dataset_report import DatasetReport, GlobalBatch, build_dataset_report, mix, summarise
from llava_trainer.data.findings import LEFT_OUT, Findings, Kind
from llava_trainer.data.mixed_samples import join_sizes
from llava_trainer.data.model_facts import read_model_facts
from llava_trainer.data.model_files import check_weights
from llava_trainer.data.processor import load_processor
from llava_trainer.data.request import (
    DatasetRequest,
    alignment_request,
    mixture_requests,
    retention_request,
    training_request,
)
from llava_trainer.data.sample_file import SampleSizes
from llava_trainer.data.samples import write_lines
from llava_trainer.errors import StageError
from llava_trainer.files import find_free_bytes, remove_folder, sha256_file, sync_file_system, write_whole
from llava_trainer.inputs import provide_inputs, read_inputs
from llava_trainer.model.flash import has_flash_attention
from llava_trainer.outcome import StageOutput
from llava_trainer.reporting import Reporter
from llava_trainer.sources.links import fetch_links
from llava_trainer.training.batch_plan import cover, make_plan
from llava_trainer.training.phase import phase_of

ENTRIES_TOLD = 10
"""Offending entries in the failure's message; the dataset report holds more."""
_ENTRY_CHARACTERS = 300
_MESSAGE_CHARACTERS = 4000

logger = logging.getLogger(__name__)


def run(config: RunConfig, reporter: Reporter) -> StageOutput:
    """Fetch and check model and datasets, split, and write sample files and report.

    Raises:
        StageError: SourceRefused, SourceUnavailable, InvalidModel, or InvalidData with the first offending entries.
    """
    config = provide_inputs(config, reporter)
    weights_bytes = check_weights(config.model_dir)
    inputs = read_inputs(config)
    facts = read_model_facts(
        config.model_dir,
        source=inputs.model_origin if inputs else "",
        layout=inputs.model_layout if inputs else "hub",
    )
    logger.info(
        "model: %.1f GB of weights, %d tokens a picture of %d px",
        weights_bytes / 1e9, facts.tokens_per_image, facts.image_size_px,
    )  # fmt: skip
    embedded = config.volume.embedded_images_dir
    if embedded.exists():
        # Of this very attempt, before its container was started again: nobody knows what of it is on the disk.
        remove_folder(embedded)
    unfetched = fetch_links(config, reporter)
    with contextlib.ExitStack() as stack:

        def check(request: DatasetRequest) -> PreparedDataset:
            return stack.enter_context(_check(config, replace(request, unfetched=unfetched), reporter))

        dataset = check(training_request(config))
        second = retention_request(config)
        retention = check(second) if second is not None else None
        relearned = find_relearned(retention, dataset) if retention is not None else 0
        mixed = [withhold(check(request), dataset, retention) for request in mixture_requests(config)]
        captions = alignment_request(config)
        alignment = check(captions) if captions is not None else None
        if alignment is not None:
            compare_phases(alignment, dataset)
        phases = [dataset, *mixed, *(one for one in (alignment, retention) if one is not None)]
        shares = [part.share for part in config.mixture]
        report = build_dataset_report(dataset, alignment, mix(dataset, mixed, shares), retention)
        report = report.model_copy(update={"global_batch": _choose_batch(config, report), "relearned": relearned})
        reporter.fence.check()
        write_whole(config.volume.dataset_report_json, report.model_dump_json(indent=2) + "\n")
        write_whole(config.volume.dataset_report_html, build_dataset_page(config.run.name, phases, report))
        _list_refused(config, phases)
        for phase in phases:
            _log(phase)
        if not report.accepted:
            told = (
                describe_refused(phase.findings, phase.request.place) for phase in phases if phase.findings.num_refused
            )
            raise StageError(Reason.INVALID_DATA, "\n".join(told)[:_MESSAGE_CHARACTERS])
        if embedded.exists():
            sync_file_system(embedded)
        digests = _write(config, dataset, mixed, alignment, retention)
        config = _settle_batch(config, report)
        trains = config.training.method != "none"
        found = {
            "largest": _find_largest(config, dataset, StageName.TRAIN, mixed) if trains else None,
            "largest_alignment": _find_largest(config, alignment, StageName.ALIGN) if alignment else None,
            "free_bytes": find_free_bytes(config.volume_root),
            "flash_attention": has_flash_attention(),
            "omits_masks": True,
            "streams_merge": True,
            "publishes": True,
            "model": facts,
            "config_version": RUN_CONFIG_VERSION,
        }
    return StageOutput(numbers=summarise(report).model_copy(update=found), digests=digests)


def _check(config: RunConfig, request: DatasetRequest, reporter: Reporter) -> PreparedDataset:
    source = show(request.dataset.source)
    return prepare_dataset(
        request,
        load_processor(config.model_dir, request.dataset.image_aspect_ratio),
        config.volume.train_file.with_name(f".{request.template}.spool"),
        lambda done, total: reporter.update(done, total, message=f"checking samples of {source}"),
    )


def _list_refused(config: RunConfig, phases: Sequence[PreparedDataset]) -> None:
    listed = [phase.findings.listed for phase in phases if phase.findings.listed is not None]
    if any(entries.num_listed for entries in listed):
        write_lines(config.volume.refused_entries_file, (part for entries in listed for part in entries.lines()))
    else:
        config.volume.refused_entries_file.unlink(missing_ok=True)


def _log(phase: PreparedDataset) -> None:
    for kind in Kind:
        if kind is not Kind.REFUSED and phase.findings.counts[kind]:
            logger.warning("%s: %s: %d", phase.request.dataset.file, kind.value, phase.findings.counts[kind])


def _choose_batch(config: RunConfig, report: DatasetReport) -> GlobalBatch | None:
    """What ``training.batch.global: auto`` comes to; None where it is a number, or there is nothing to go by."""
    training, samples = config.training, report.samples_per_epoch
    if training.batch.global_ != "auto" or training.method == "none" or not samples:
        return None
    chosen = choose_global_batch(training, processes=config.workers.world_size, samples=samples)
    return GlobalBatch(samples=chosen, reason=describe_choice(chosen, training, samples=samples))


def _settle_batch(config: RunConfig, report: DatasetReport) -> RunConfig:
    if report.global_batch is None:
        return config
    batch = settle_batch(config.training.batch, report.global_batch.samples, processes=config.workers.world_size)
    return config.model_copy(update={"training": config.training.model_copy(update={"batch": batch})})


def _find_largest(
    config: RunConfig, dataset: PreparedDataset, stage: StageName, mixed: Sequence[PreparedDataset] = ()
) -> MicroBatch:
    """What a training process is going to hold at most in a phase."""
    sizes = [_sizes_of(one, config.training.max_length) for one in (dataset, *mixed)]
    phase = phase_of(config, stage)
    plan = make_plan(phase, join_sizes(sizes), config.workers.world_size, [len(one) for one in sizes[1:]])
    largest = plan.find_largest()
    table = dataset.table
    watched = dataset.selecting if dataset.request.selects else dataset.held_out
    if phase.training.validation is None or not watched.any():
        return largest
    # Held-out samples go in rows of their own, by the same number at a time.
    rows = phase.training.batch.per_device
    looked_at = MicroBatch(
        rows=rows,
        tokens=rows * min(int(table.tokens[watched].max()), config.training.max_length),
        pictures=rows * int(table.num_images[watched].max()),
        supervised=rows * int(table.supervised[watched].max()),
    )
    return cover(largest, looked_at)


def _sizes_of(dataset: PreparedDataset, max_length: int) -> SampleSizes:
    table, trained = dataset.table, dataset.trained
    return SampleSizes(
        tokens=np.minimum(table.tokens[trained].astype(np.int64), max_length),
        images=table.num_images[trained],
        supervised=table.supervised[trained],
    )


def describe_refused(findings: Findings, place: str) -> str:
    """The failure's message: how many entries of the dataset at ``place`` cannot be trained on, and the first."""
    count = findings.num_refused
    told = findings.first(Kind.REFUSED, ENTRIES_TOLD)
    heading = f"{count:,} {'entry' if count == 1 else 'entries'} of {place} cannot be used"
    if findings.needed_length:
        heading += f"; training.maxLength must be at least {findings.needed_length} to keep all"
    if count > len(told):
        heading += f"; the first {len(told)} of them (data/refused.jsonl on the volume has all)"
    left_out = [finding for kind in LEFT_OUT for finding in findings.first(kind, ENTRIES_TOLD)]
    lines = (
        text if len(text := str(entry)) <= _ENTRY_CHARACTERS else f"{text[:_ENTRY_CHARACTERS]}…"
        for entry in (*told, *left_out[: ENTRIES_TOLD - len(told)])
    )
    return "\n".join((f"{heading}:", *lines))


def _write(
    config: RunConfig, dataset: PreparedDataset, mixed: Sequence[PreparedDataset], alignment: PreparedDataset | None,
    retention: PreparedDataset | None,
) -> dict[str, str]:  # fmt: skip
    volume = config.volume
    sides = [
        ("train", volume.train_file, dataset, dataset.trained),
        ("validation", volume.validation_file, dataset, dataset.judging),
    ]
    if dataset.request.selects:
        sides.append(("selection", volume.selection_file, dataset, dataset.selecting))
    for index, one in enumerate(mixed):
        sides.append((f"mixture-{index}", volume.mixture_file(index), one, one.trained))
    if retention is not None:
        sides.append(("retention", volume.retention_file, retention, retention.trained))
    if alignment is not None:
        sides.append(("alignment", volume.alignment_file, alignment, alignment.trained))
    digests = {}
    for name, path, source, chosen in sides:
        count = write_lines(path, source.lines(chosen))
        digests[name] = sha256_file(path)
        logger.info("%s: %d samples", path.name, count)
    return digests
