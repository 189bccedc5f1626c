"""The dataset report's facts: ``data/report.json``, written whether the data is accepted or not.

It holds no times and no paths of this machine, so that the same data gives the same file.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from llava_api.base import Lenient
from llava_api.judging import can_decide
from llava_api.report import PrepareNumbers
from llava_trainer.data.dataset import PreparedDataset
from llava_trainer.data.findings import Finding, Kind
from llava_trainer.data.mixed_samples import count_drawn
from llava_trainer.data.token_counts import Lengths, Supervised, describe_lengths, describe_supervised


class Side(Lenient):
    """One side of the split."""

    samples: int
    pairs: int
    """Questions with their answers."""
    pictures: int
    """Different image files."""
    supervised_tokens: int
    groups: int = 0
    """Groups that its samples belong to; samples without a group of their own are one by what they show."""


class Shared(Lenient):
    """What of the held-out side belongs to groups that training has samples of, too: its score flatters."""

    groups: int = 0
    pairs: int = 0
    """Held-out questions of these groups."""


class ImageSummary(Lenient):
    """The images of usable samples."""

    files: int
    different: int
    """Files that differ in their pixels."""
    tokens_each: int
    aspect_ratio: str
    side_px: int = 0
    """Width and height that the vision tower sees."""
    median_scale: float | None = None
    """By how much the median image is scaled for that."""
    median_text_px: float | None = None
    """Height of the median text there; None where the data does not tell where texts are."""
    smallest_px: tuple[int, int] | None
    """Width and height of the image with the fewest pixels."""
    largest_px: tuple[int, int] | None


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


class GlobalBatch(Lenient):
    """What training.batch.global auto has come to."""

    samples: int
    reason: str


class DatasetReport(Lenient):
    """Everything that prepare found."""

    version: Literal[1] = 1
    accepted: bool
    format: str
    file: str
    samples_read: int
    train: Side
    validation: Side
    """What gives the scores."""
    selection: Side | None = None
    """What selects a step; None where nothing does."""
    shared: Shared = Shared()
    can_decide: bool | None = None
    """Whether what gives the scores has groups enough to tell two models apart, or for a gate where there is one.

    None where nothing is held out.
    """
    sufficient_fraction: float | None = None
    """dataset.validation.fraction with which it would; None where it does, or no fraction does."""
    pictures: ImageSummary
    lengths: Lengths
    supervised: Supervised = Supervised()
    left_out: int = 0
    """Samples that are not trained on, since nothing to learn is left of them or the model would misread them."""
    refused_count: int
    refused: tuple[Told, ...]
    listed_entries: int = 0
    """Entries that refused.jsonl beside this file lists: those that were refused or left out."""
    notes: tuple[Note, ...]
    global_batch: GlobalBatch | None = None
    """None where training.batch.global is a number."""
    mixture: tuple["MixtureReport", ...] = ()
    """What is learned from beside it."""
    alignment: "DatasetReport | None" = None
    """The same about the dataset of phase 1."""
    retention: "DatasetReport | None" = None
    """The same about the set that tells what was forgotten."""
    relearned: int = 0
    """Samples of that which show, ask or belong to what training learns from."""

    @property
    def samples_per_epoch(self) -> int:
        """Samples that training learns from in an epoch."""
        return self.train.samples + sum(part.drawn for part in self.mixture)


class MixtureReport(Lenient):
    """One dataset of the mixture."""

    share: float
    """Of an epoch's samples."""
    drawn: int
    """Samples of it that an epoch has."""
    withheld: int
    """Samples that are left out, because they show or belong to what is held out."""
    dataset: DatasetReport


def mix(dataset: PreparedDataset, mixed: Sequence[PreparedDataset], shares: Sequence[float]) -> list[MixtureReport]:
    """Sum up what was found of a mixture.

    Raises:
        ValueError: the shares leave nothing for ``dataset``.
    """
    drawn = count_drawn(int(dataset.trained.sum()), shares)
    return [
        MixtureReport(share=share, drawn=count, withheld=int(one.withheld.sum()), dataset=build_dataset_report(one))
        for one, share, count in zip(mixed, shares, drawn, strict=True)
    ]


def build_dataset_report(
    dataset: PreparedDataset, alignment: PreparedDataset | None = None, mixture: Sequence[MixtureReport] = (),
    retention: PreparedDataset | None = None,
) -> DatasetReport:  # fmt: skip
    """Sum up what was found."""
    findings = dataset.findings
    notes = tuple(
        Note(kind=kind.name.lower(), title=kind.value, count=findings.counts[kind], examples=_told(findings.kept[kind]))
        for kind in Kind
        if kind is not Kind.REFUSED and findings.counts[kind]
    )
    phase_1, second = (None if one is None else build_dataset_report(one) for one in (alignment, retention))
    return DatasetReport(
        accepted=(
            findings.num_refused == 0
            and all(one is None or one.accepted for one in (phase_1, second))
            and all(part.dataset.accepted for part in mixture)
        ),
        format=dataset.request.dataset.format,
        file=dataset.request.dataset.file,
        samples_read=dataset.num_read,
        train=_describe_side(dataset, dataset.trained),
        validation=_describe_side(dataset, dataset.judging),
        selection=_describe_side(dataset, dataset.selecting) if dataset.request.selects else None,
        shared=Shared(
            groups=len(np.unique(dataset.group_of[dataset.shared])),
            pairs=int(dataset.table.num_pairs[dataset.shared].sum()),
        ),
        can_decide=_can_decide(dataset),
        sufficient_fraction=dataset.sufficient_fraction,
        pictures=_describe_images(dataset),
        lengths=describe_lengths(dataset.table, dataset.request.max_length),
        supervised=describe_supervised(dataset.table),
        left_out=findings.num_left_out,
        refused_count=findings.num_refused,
        refused=_told(findings.kept.get(Kind.REFUSED, [])),
        listed_entries=findings.listed.num_listed if findings.listed is not None else 0,
        notes=notes,
        mixture=tuple(mixture),
        alignment=phase_1,
        retention=second,
    )


def summarise(report: DatasetReport) -> PrepareNumbers:
    """What of it travels to the resource's status."""
    return PrepareNumbers(
        samples_train=report.train.samples,
        samples_validation=report.validation.samples,
        pairs_train=report.train.pairs,
        pairs_validation=report.validation.pairs,
        groups_validation=report.validation.groups,
        samples_selection=report.selection.samples if report.selection else 0,
        groups_selection=report.selection.groups if report.selection else 0,
        groups_shared=report.shared.groups,
        pairs_shared=report.shared.pairs,
        images=report.pictures.files,
        supervised_tokens=report.train.supervised_tokens,
        longest_sample_tokens=report.lengths.longest,
        overlong_samples=report.lengths.overlong,
        unsupervised_samples=report.left_out,
        sufficient_fraction=report.sufficient_fraction,
        image_scale=report.pictures.median_scale,
        text_height_px=report.pictures.median_text_px,
        global_batch=report.global_batch.samples if report.global_batch else None,
        samples_mixture=sum(part.drawn for part in report.mixture),
        samples_withheld=sum(part.withheld for part in report.mixture),
        samples_retention=report.retention.train.samples if report.retention else 0,
        groups_retention=report.retention.train.groups if report.retention else 0,
        retention_shared=report.relearned,
        samples_alignment=report.alignment.train.samples if report.alignment else 0,
    )


def _can_decide(dataset: PreparedDataset) -> bool | None:
    num_groups = len(np.unique(dataset.group_of[dataset.judging]))
    return can_decide(num_groups, is_gated=dataset.request.is_gated) if num_groups else None


def _told(findings: Sequence[Finding]) -> tuple[Told, ...]:
    return tuple(Told(where=finding.where, message=finding.message) for finding in findings)


def _describe_side(dataset: PreparedDataset, chosen: np.ndarray) -> Side:
    table = dataset.table
    shown_by, shown = table.shown
    return Side(
        samples=int(chosen.sum()),
        pairs=int(table.num_pairs[chosen].sum()),
        pictures=len(np.unique(shown[chosen[shown_by]])),
        supervised_tokens=int(table.supervised[chosen].sum()),
        groups=len(np.unique(dataset.group_of[chosen])),
    )


def _describe_images(dataset: PreparedDataset) -> ImageSummary:
    sizes = sorted((facts.width_px, facts.height_px) for facts in dataset.images.values())
    return ImageSummary(
        files=len(dataset.images),
        different=len({facts.digest for facts in dataset.images.values()}),
        tokens_each=dataset.processor.tokens_per_image,
        aspect_ratio=dataset.processor.aspect_ratio,
        side_px=dataset.processor.image_size_px,
        median_scale=dataset.image_scale,
        median_text_px=dataset.box_height_px,
        smallest_px=min(sizes, key=lambda size: size[0] * size[1], default=None),
        largest_px=max(sizes, key=lambda size: size[0] * size[1], default=None),
    )
