"""One dataset: read, checked, compared with itself, split.

Samples go to the disk as they are checked; what stays in memory is a few numbers of each (``sample_table``) and the
facts of each image, however long the texts are and however large the export is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from llava_api.text import show
from llava_trainer.data.check import Checked, Checker, Limits
from llava_trainer.data.compare import Comparison, find_shared_groups
from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.findings import KEPT_PER_KIND, Finding, Findings, Kind, noted, refused
from llava_trainer.data.formats import read_export
from llava_trainer.data.image_folder import keep_embedded
from llava_trainer.data.images import ImageFacts
from llava_trainer.data.processor import Processor
from llava_trainer.data.refused_entries import RefusedEntries
from llava_trainer.data.request import DatasetRequest
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.sample_table import SampleTable
from llava_trainer.data.samples import Sample, format_sample
from llava_trainer.data.shards import find_shards
from llava_trainer.data.sides import choose_sides
from llava_trainer.files import make_folder, resolve_inside, tell_names

OnProgress = Callable[[int, int], None]
"""Told the samples checked and, as nearly as is known, how many there are."""


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
        return ~self.held_out

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
    reading = _Reading(request, findings, on_progress)
    samples = reading.read_all(checker, spool)
    _check_unsupervised(reading, request, findings)
    _check_prompts(request, checker, findings)
    group_of, groups = reading.table.groups()
    sides = choose_sides(reading.table, group_of, groups, request, findings)
    Comparison(reading.table, sides.held_out, group_of, samples.__getitem__, findings).compare()
    return PreparedDataset(
        request=request,
        processor=processor,
        samples=samples,
        table=reading.table,
        held_out=sides.held_out,
        selecting=sides.selecting,
        group_of=group_of,
        group_keys=np.array([group.key for group in groups], dtype=np.uint64),
        num_read=reading.num_read,
        images={path: facts for path, facts in checker.images.items()
                  if isinstance(facts, ImageFacts) and path in reading.used},
        findings=findings,
    )  # fmt: skip


def compare_phases(alignment: PreparedDataset, training: PreparedDataset) -> None:
    """Tell alignment's images and groups that training holds out: their captions may give answers away."""
    shared = alignment.table.samples_with(training.table.contents_of(training.held_out))
    for index in shared[:KEPT_PER_KIND]:
        found = alignment.samples[int(index)]
        group = f", of group {found.group!r:.80}" if found.group else ""
        message = f"shows {', '.join(found.images)}{group}"
        alignment.findings.add(noted(Kind.ALIGNMENT_OVERLAP, found.source, message))
    alignment.findings.count(Kind.ALIGNMENT_OVERLAP, len(shared[KEPT_PER_KIND:]))


class _Reading:
    """Reads the files of a dataset once, from beginning to end."""

    def __init__(self, request: DatasetRequest, findings: Findings, on_progress: OnProgress) -> None:
        self._request = request
        self._findings = findings
        self._on_progress = on_progress
        self._position = ReadingPosition()
        self._num_checked = 0
        self._read_files: set[str] = set()
        """Files that have been read."""
        self._first_path: dict[bytes, str] = {}
        self.num_read = 0
        self.table = SampleTable()
        self.used: set[str] = set()
        """Images of usable samples."""

    def read_all(self, checker: Checker, spool: Path) -> SampleFile:
        """Check every sample and keep the usable ones in a file without a name."""
        make_folder(spool.parent)
        with spool.open("w", encoding="utf-8") as stream:
            for number, (field, pattern) in enumerate(self._request.files):
                for checked in checker.check_all(self._read_shards(field, pattern), self._tell):
                    self._take_in(checked, from_validation=number > 0)
                    counted = replace(
                        checked.sample, num_tokens=checked.num_tokens, num_supervised=checked.num_supervised
                    )
                    stream.write(format_sample(counted))
        samples = SampleFile(spool)
        # Open, but gone from the folder: whatever ends this process, nothing is left lying there.
        spool.unlink()
        return samples

    def _read_shards(self, field: str, pattern: str) -> Iterator[Sample | Finding]:
        root = self._request.root
        try:
            names = find_shards(root, pattern)
        except (OSError, ValueError) as error:
            yield refused(pattern, f"{error}: correct {field}")
            return
        if not names:
            source = self._request.dataset.source
            yield refused(pattern, f"fits no file (in {source}, which holds {tell_names(root)}): correct {field}")
        for name in names:
            if field != "dataset.file" and name in self._read_files:
                yield refused(name, f"is one of the files of dataset.file, too: correct dataset.file or {field}")
                continue
            self._read_files.add(name)
            yield from self._count(field, name)

    def _count(self, field: str, name: str) -> Iterator[Sample | Finding]:
        num_before = self.num_read
        complained = False
        for item in _read_file(self._request, field, name, self._position):
            self.num_read += isinstance(item, Sample)
            complained |= isinstance(item, Finding) and item.kind is Kind.REFUSED
            yield item
        if self.num_read == num_before and not complained:
            yield refused(name, "holds no sample")

    def _tell(self) -> None:
        self._num_checked += 1
        scale = self._position.total_bytes / max(1, self._position.read_bytes)
        self._on_progress(self._num_checked, max(self._num_checked, round(self.num_read * scale)))

    def _take_in(self, checked: Checked, *, from_validation: bool) -> None:
        self.table.add(checked, from_validation=from_validation)
        for path, image in zip(checked.sample.images, checked.images, strict=True):
            if path in self.used:
                continue
            self.used.add(path)
            first = self._first_path.setdefault(image.digest, path)
            if first != path:
                self._findings.add(noted(Kind.SAME_PICTURE, path, f"same pixels as {first}"))


def _read_file(request: DatasetRequest, field: str, name: str, position: ReadingPosition) -> Iterator[Sample | Finding]:
    """Read one file of a dataset, relative to its folder, that ``field`` of the spec names."""
    dataset = request.dataset

    def resolve(relative: str) -> Path:
        return resolve_inside(request.root, request.root, relative)

    try:
        resolve(name)
    except (OSError, ValueError) as error:
        yield refused(name, f"{error} (in {dataset.source}, which holds {tell_names(request.root)}): correct {field}")
        return
    yield from read_export(dataset, name, resolve, partial(keep_embedded, request.embedded), position)


def _check_unsupervised(reading: _Reading, request: DatasetRequest, findings: Findings) -> None:
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
