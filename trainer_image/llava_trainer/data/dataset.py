"""One dataset: read, checked, compared with itself, split.

Samples go to the disk as they are checked; what stays in memory is a few numbers of each (``sample_table``) and the
facts of each image, however long the texts are and however large the export is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from llava_api.legibility import describe_small_pictures, describe_small_text, scale_of
from llava_api.text import show
from llava_trainer.data.box_heights import BoxHeights
from llava_trainer.data.check import Checker, Limits
from llava_trainer.data.compare import Comparison, find_shared_groups
from llava_trainer.data.findings import KEPT_PER_KIND, Findings, Kind, noted, refused
from llava_trainer.data.images import ImageFacts
from llava_trainer.data.processor import Processor
from llava_trainer.data.reading import OnProgress, Reading
from llava_trainer.data.refused_entries import RefusedEntries
from llava_trainer.data.request import DatasetRequest
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.sample_table import SampleTable
from llava_trainer.data.samples import format_sample
from llava_trainer.data.sides import choose_sides


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """What prepare knows about a dataset; ``findings`` tells whether it may be trained on.

    Attributes:
        request: what was asked for.
        processor: the checkpoint's, with which tokens were counted.
        samples: the usable samples, in the export's order, held-out files last.
        table: facts of each of them.
        held_out: bool [samples]: not trained on.
        selecting: bool [samples]: those of them that select a step; the others give the scores.
        sufficient_fraction: dataset.validation.fraction that would hold out enough groups for scores to decide by; None
            where they do, or no fraction does.
        image_scale: by how much the median image is scaled for the vision tower; None without images.
        box_height_px: height of the median text at the tower's resolution, where the data tells where texts are.
        withheld: bool [samples]: not trained on, because another dataset holds out what they show or belong to.
        group_of: int64 [samples]: samples with the same number belong together and stay on one side.
        group_keys: uint64 [groups]: what a group is called in the file of samples, the same for the same data.
        num_read: samples that the export holds, usable or not.
        images: facts of every usable image, by path.
        findings: everything found.
    """

    request: DatasetRequest
    processor: Processor
    samples: SampleFile
    table: SampleTable
    held_out: np.ndarray
    selecting: np.ndarray
    sufficient_fraction: float | None
    image_scale: float | None
    box_height_px: float | None
    withheld: np.ndarray
    group_of: np.ndarray
    group_keys: np.ndarray
    num_read: int
    images: dict[str, ImageFacts]
    findings: Findings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.samples.__exit__(*exception)
        if self.findings.listed is not None:
            self.findings.listed.close()

    @property
    def trained(self) -> np.ndarray:
        """Bool [samples]: what is learned from."""
        trained: np.ndarray = ~self.held_out & ~self.withheld
        return trained

    @property
    def judging(self) -> np.ndarray:
        """Bool [samples]: what gives the scores."""
        judging: np.ndarray = self.held_out & ~self.selecting
        return judging

    def lines(self, chosen: np.ndarray) -> Iterator[bytes]:
        """The samples of one side as lines of a file of samples, with the keys of their groups."""
        for index in np.flatnonzero(chosen):
            key = f"{int(self.group_keys[self.group_of[index]]):016x}"
            yield format_sample(replace(self.samples[int(index)], group_key=key)).encode()

    @property
    def shared(self) -> np.ndarray:
        """Bool [samples]: held out, of a group that training has samples of, too."""
        return self.judging & np.isin(self.group_of, find_shared_groups(self.group_of, self.held_out))


def prepare_dataset(
    request: DatasetRequest,
    processor: Processor,
    spool: Path,
    on_progress: OnProgress = lambda done, total: None,
    num_decoders: int | None = None,
) -> PreparedDataset:
    """Read and check everything that is asked for; bad data is found, not raised.

    Args:
        request: what to read.
        processor: the checkpoint's, to count tokens with.
        spool: file to keep samples in meanwhile; it has no name any more when this returns.
        on_progress: told after each sample.
        num_decoders: threads that decode images; what is found does not depend on it.
    """
    dataset = request.dataset
    unused = RefusedEntries(show(dataset.source), request.root, spool.with_name(f"{spool.name}.refused"))
    findings = Findings(listed=unused)
    limits = Limits(max_length=request.max_length, max_pixels=dataset.limits.image_pixels)
    checker = Checker(request.folder, processor, limits, findings, template=request.template, num_decoders=num_decoders)
    heights = BoxHeights(processor.image_size_px, processor.aspect_ratio)
    reading = Reading(request, findings, on_progress, heights)
    samples = reading.read_all(checker, spool)
    _check_unsupervised(reading, request, findings)
    _check_prompts(request, checker, findings)
    group_of, groups = reading.table.groups()
    sides = choose_sides(reading.table, group_of, groups, request, findings)
    Comparison(reading.table, sides.held_out, group_of, samples.__getitem__, findings).compare()
    images = {
        path: facts for path, facts in checker.images.items() if isinstance(facts, ImageFacts) and path in reading.used
    }
    image_scale = _find_median_scale(images, processor)
    if request.template == "v1":
        _check_legible(request, image_scale, heights.median_px, processor, findings)
    return PreparedDataset(
        request=request,
        processor=processor,
        samples=samples,
        table=reading.table,
        held_out=sides.held_out,
        selecting=sides.selecting,
        sufficient_fraction=sides.sufficient_fraction,
        image_scale=image_scale,
        box_height_px=heights.median_px,
        withheld=np.zeros(len(reading.table), dtype=bool),
        group_of=group_of,
        group_keys=np.array([group.key for group in groups], dtype=np.uint64),
        num_read=reading.num_read,
        images=images,
        findings=findings,
    )


def _find_median_scale(images: Mapping[str, ImageFacts], processor: Processor) -> float | None:
    scales = [
        scale_of(facts.width_px, facts.height_px, processor.image_size_px, processor.aspect_ratio)
        for facts in images.values()
    ]
    return float(np.median(scales)) if scales else None


def _check_legible(
    request: DatasetRequest, image_scale: float | None, box_height_px: float | None, processor: Processor,
    findings: Findings,
) -> None:  # fmt: skip
    """Warn of what cannot be read at the tower's resolution. Captions of phase 1 are not about small texts."""
    for warning in (
        describe_small_pictures(image_scale, processor.image_size_px),
        describe_small_text(box_height_px, processor.image_size_px),
    ):
        if warning is not None:
            findings.add(noted(Kind.ILLEGIBLE, request.dataset.file, warning))


def compare_phases(alignment: PreparedDataset, training: PreparedDataset) -> None:
    """Tell alignment's images and groups that training holds out: their captions may give answers away."""
    shared = alignment.table.samples_with(training.table.contents_of(training.held_out))
    for index in shared[:KEPT_PER_KIND]:
        found = alignment.samples[int(index)]
        group = f", of group {found.group!r:.80}" if found.group else ""
        message = f"shows {', '.join(found.images)}{group}"
        alignment.findings.add(noted(Kind.ALIGNMENT_OVERLAP, found.source, message))
    alignment.findings.count(Kind.ALIGNMENT_OVERLAP, len(shared[KEPT_PER_KIND:]))


def withhold(
    mixed: PreparedDataset, training: PreparedDataset, retention: PreparedDataset | None = None
) -> PreparedDataset:
    """A dataset of the mixture without the samples that belong to what is held out, or is to be retained.

    They show an image that is there, or name a group that is; or, both without images, ask the same first.
    """
    kept_from = training.table.contents_of(training.held_out)
    if retention is not None:
        kept_from |= retention.table.contents_of(retention.trained)
    shared = mixed.table.samples_with(kept_from)
    _tell_ties(mixed, shared, Kind.WITHHELD)
    if len(shared) and len(shared) == len(mixed.table) and not mixed.findings.num_refused:
        mixed.findings.add(
            refused(
                mixed.request.dataset.file,
                "every sample shows a picture, names a group or asks a question that spec.dataset holds out or "
                "spec.evaluation.retention has: take the dataset out of spec.mixture, or hold out other samples",
            )
        )
    withheld = np.zeros(len(mixed.table), dtype=bool)
    withheld[shared] = True
    return replace(mixed, withheld=withheld)


def find_relearned(retention: PreparedDataset, training: PreparedDataset) -> int:
    """Tell and count samples of the retention set that belong to what training learns from, in the same sense."""
    shared = retention.table.samples_with(training.table.contents_of(training.trained))
    _tell_ties(retention, shared, Kind.RETENTION_OVERLAP)
    return len(shared)


def _tell_ties(dataset: PreparedDataset, samples: np.ndarray, kind: Kind) -> None:
    for index in samples[:KEPT_PER_KIND]:
        found = dataset.samples[int(index)]
        group = f", of group {found.group!r:.80}" if found.group else ""
        shown = f"shows {', '.join(found.images)}" if found.images else f"asks {found.turns[0].text!r:.80}"
        dataset.findings.add(noted(kind, found.source, f"{shown}{group}"))
    dataset.findings.count(kind, len(samples[KEPT_PER_KIND:]))


def _check_unsupervised(reading: Reading, request: DatasetRequest, findings: Findings) -> None:
    """Refuse a dataset of which too much teaches nothing."""
    left_out = findings.num_left_out
    total = left_out + len(reading.table)
    limit = request.dataset.limits.unsupervised_share
    if left_out and (left_out > limit * total or not len(reading.table)):
        findings.add(
            refused(
                request.dataset.file,
                f"{left_out:,} of {total:,} samples ({left_out / total:.1%}) had to be left out, more than "
                f"dataset.limits.unsupervisedShare {limit:g} allows",
            )
        )


def _check_prompts(request: DatasetRequest, checker: Checker, findings: Findings) -> None:
    for index, prompt in enumerate(request.prompts):
        if prompt.image is None:
            continue
        problem = checker.find_image_problem(prompt.image)
        if problem is not None:
            name = request.folder.display_name(prompt.image)
            findings.add(refused(f"evaluation.prompts[{index}]", f"picture {name} {problem}"))
