"""Prepare: look at everything that would fail later, before a GPU is taken, and write down what there is to learn.

Model and dataset are read in place; nothing is copied. The dataset report is written whether the data is accepted or
not; the sample files only if it is. Running it again over what an earlier attempt left gives the same files.
"""

import logging

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.data.dataset import PreparedDataset, prepare_dataset
from llava_trainer.data.findings import Findings
from llava_trainer.data.model_files import check_weights
from llava_trainer.data.processing import load_processing
from llava_trainer.data.report import build_report, numbers_of
from llava_trainer.data.report_page import build_page
from llava_trainer.data.samples import write_samples
from llava_trainer.errors import StageError
from llava_trainer.files import sha256_file, write_whole
from llava_trainer.outcome import StageOutput
from llava_trainer.reporting import Reporter

ENTRIES_TOLD = 10
"""Offending entries in the failure's message; the dataset report holds more."""
_ENTRY_CHARACTERS = 300

logger = logging.getLogger(__name__)


def run(config: RunConfig, reporter: Reporter) -> StageOutput:
    """Check model and dataset, split, and write sample files and report.

    Raises:
        StageError: InvalidModel, or InvalidData with the first offending entries.
    """
    weights_bytes = check_weights(config.model_dir)
    processing = load_processing(config.model_dir, config.dataset.image_aspect_ratio)
    logger.info(
        "model: %.1f GB of weights, %d tokens a picture of %d px",
        weights_bytes / 1e9, processing.tokens_per_image, processing.image_size_px,
    )  # fmt: skip
    dataset = prepare_dataset(
        config, processing, lambda done, total: reporter.update(done, total, message="checking samples")
    )
    report = build_report(config, processing, dataset)
    write_whole(config.volume.dataset_report_json, report.model_dump_json(indent=2) + "\n")
    write_whole(config.volume.dataset_report_html, build_page(config, processing, dataset, report))
    for note in report.notes:
        logger.warning("%s: %d", note.title, note.count)
    if not report.accepted:
        raise StageError(Reason.INVALID_DATA, describe_refused(dataset.findings))
    return StageOutput(numbers=numbers_of(report), digests=_write(config, dataset))


def describe_refused(findings: Findings) -> str:
    """The failure's message: how many entries cannot be trained on, and the first of them."""
    count = findings.num_refused
    told = findings.first_refused(ENTRIES_TOLD)
    heading = f"{count:,} {'entry' if count == 1 else 'entries'} of the dataset cannot be used"
    if findings.needed_length:
        heading += f"; training.maxLength must be at least {findings.needed_length}"
    if count > len(told):
        heading += f"; the first {len(told)} of them"
    lines = (text if len(text := str(entry)) <= _ENTRY_CHARACTERS else f"{text[:_ENTRY_CHARACTERS]}…" for entry in told)
    return "\n".join((f"{heading}:", *lines))


def _write(config: RunConfig, dataset: PreparedDataset) -> dict[str, str]:
    volume = config.volume
    digests = {}
    for name, path, items in (
        ("train", volume.train_file, dataset.train),
        ("validation", volume.validation_file, dataset.validation),
    ):
        write_samples(path, (item.sample for item in items))
        digests[name] = sha256_file(path)
        logger.info("%s: %d samples, %d pairs", path.name, len(items), sum(item.sample.num_pairs for item in items))
    return digests
