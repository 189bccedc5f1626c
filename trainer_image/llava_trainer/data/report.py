"""The dataset report's facts: ``data/report.json``, written whether the data is accepted or not.

It holds no times and no paths of this machine, so that the same data gives the same file.
"""

import statistics
from collections.abc import Sequence
from typing import Literal

from llava_api.base import Lenient
from llava_api.report import PrepareNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.check import Checked
from llava_trainer.data.dataset import PreparedDataset
from llava_trainer.data.findings import Finding, Kind
from llava_trainer.data.processing import Processing

HISTOGRAM_BARS = 24


class Bar(Lenient):
    """One bar of a histogram: samples of ``from_tokens`` to below ``to_tokens``."""

    from_tokens: int
    to_tokens: int
    samples: int


class Side(Lenient):
    """One side of the split."""

    samples: int
    pairs: int
    """Questions with their answers."""
    pictures: int
    """Different picture files."""
    supervised_tokens: int


class Pictures(Lenient):
    """The pictures of usable samples."""

    files: int
    different: int
    """Files that differ in their pixels."""
    tokens_each: int
    aspect_ratio: str
    smallest_px: tuple[int, int] | None
    """Width and height of the picture with the fewest pixels."""
    largest_px: tuple[int, int] | None


class Lengths(Lenient):
    """Lengths of usable samples in tokens, image tokens included, before cutting off."""

    longest: int
    median: float
    total: int
    max_length: int
    """training.maxLength."""
    overlong: int
    histogram: tuple[Bar, ...]


class Told(Lenient):
    """One finding."""

    where: str
    message: str


class Note(Lenient):
    """Findings of one kind."""

    kind: str
    title: str
    count: int
    examples: tuple[Told, ...]


class DatasetReport(Lenient):
    """Everything that prepare found."""

    version: Literal[1] = 1
    accepted: bool
    format: str
    file: str
    samples_read: int
    train: Side
    validation: Side
    pictures: Pictures
    lengths: Lengths
    refused_count: int
    refused: tuple[Told, ...]
    notes: tuple[Note, ...]


def build_report(config: RunConfig, processing: Processing, dataset: PreparedDataset) -> DatasetReport:
    """Sum up what was found."""
    findings = dataset.findings
    notes = tuple(
        Note(kind=kind.name.lower(), title=kind.value, count=findings.counts[kind], examples=_told(findings.kept[kind]))
        for kind in Kind
        if kind is not Kind.REFUSED and findings.counts[kind]
    )
    return DatasetReport(
        accepted=findings.num_refused == 0,
        format=config.dataset.format,
        file=config.dataset.file,
        samples_read=dataset.num_read,
        train=_describe_side(dataset.train),
        validation=_describe_side(dataset.validation),
        pictures=_describe_pictures(dataset, processing),
        lengths=_describe_lengths(dataset, config.training.max_length),
        refused_count=findings.num_refused,
        refused=_told(findings.kept.get(Kind.REFUSED, [])),
        notes=notes,
    )


def numbers_of(report: DatasetReport) -> PrepareNumbers:
    """What of it travels to the resource's status."""
    return PrepareNumbers(
        samples_train=report.train.samples,
        samples_validation=report.validation.samples,
        pairs_train=report.train.pairs,
        pairs_validation=report.validation.pairs,
        images=report.pictures.files,
        supervised_tokens=report.train.supervised_tokens,
        longest_sample_tokens=report.lengths.longest,
        overlong_samples=report.lengths.overlong,
    )


def _told(findings: Sequence[Finding]) -> tuple[Told, ...]:
    return tuple(Told(where=finding.where, message=finding.message) for finding in findings)


def _describe_side(items: Sequence[Checked]) -> Side:
    return Side(
        samples=len(items),
        pairs=sum(item.sample.num_pairs for item in items),
        pictures=len({path for item in items for path in item.sample.images}),
        supervised_tokens=sum(item.num_supervised for item in items),
    )


def _describe_pictures(dataset: PreparedDataset, processing: Processing) -> Pictures:
    sizes = sorted((facts.width_px, facts.height_px) for facts in dataset.pictures.values())
    return Pictures(
        files=len(dataset.pictures),
        different=len({facts.digest for facts in dataset.pictures.values()}),
        tokens_each=processing.tokens_per_image,
        aspect_ratio=processing.aspect_ratio,
        smallest_px=min(sizes, key=lambda size: size[0] * size[1], default=None),
        largest_px=max(sizes, key=lambda size: size[0] * size[1], default=None),
    )


def _describe_lengths(dataset: PreparedDataset, max_length: int) -> Lengths:
    lengths = [item.num_tokens for item in (*dataset.train, *dataset.validation)]
    return Lengths(
        longest=max(lengths, default=0),
        median=statistics.median(lengths) if lengths else 0,
        total=sum(lengths),
        max_length=max_length,
        overlong=sum(length > max_length for length in lengths),
        histogram=build_histogram(lengths),
    )


def build_histogram(lengths: Sequence[int], num_bars: int = HISTOGRAM_BARS) -> tuple[Bar, ...]:
    """At most ``num_bars`` bars of one width from the shortest to the longest; empty without lengths."""
    if not lengths:
        return ()
    shortest, longest = min(lengths), max(lengths)
    width = max(1, -(-(longest - shortest + 1) // num_bars))
    counts = [0] * (-(-(longest - shortest + 1) // width))
    for length in lengths:
        counts[(length - shortest) // width] += 1
    return tuple(
        Bar(from_tokens=shortest + index * width, to_tokens=shortest + (index + 1) * width, samples=count)
        for index, count in enumerate(counts)
    )
