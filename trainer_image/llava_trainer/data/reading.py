"""The files of a dataset, read once: usable samples onto the disk, numbers of them into a table."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from llava_trainer.data.box_heights import BoxHeights
from llava_trainer.data.check import Checked, Checker
from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.findings import Finding, Findings, Kind, noted, refused
from llava_trainer.data.formats import read_export
from llava_trainer.data.image_folder import keep_embedded
from llava_trainer.data.request import DatasetRequest
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.sample_table import SampleTable
from llava_trainer.data.samples import Sample, format_sample
from llava_trainer.data.shards import find_shards
from llava_trainer.files import make_folder, resolve_inside, tell_names

OnProgress = Callable[[int, int], None]
"""Told the samples checked and, as nearly as is known, how many there are."""


class Reading:
    """Reads the files of a dataset once, from beginning to end."""

    def __init__(
        self, request: DatasetRequest, findings: Findings, on_progress: OnProgress, heights: BoxHeights
    ) -> None:
        self._request = request
        self._heights = heights
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
        for item in _read_file(self._request, field, name, self._position, self._heights):
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


def _read_file(
    request: DatasetRequest, field: str, name: str, position: ReadingPosition, heights: BoxHeights
) -> Iterator[Sample | Finding]:
    """Read one file of a dataset, relative to its folder, that ``field`` of the spec names."""
    dataset = request.dataset

    def resolve(relative: str) -> Path:
        return resolve_inside(request.root, request.root, relative)

    try:
        resolve(name)
    except (OSError, ValueError) as error:
        yield refused(name, f"{error} (in {dataset.source}, which holds {tell_names(request.root)}): correct {field}")
        return
    yield from read_export(dataset, name, resolve, partial(keep_embedded, request.embedded), position, heights)
