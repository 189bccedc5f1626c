"""The file of samples, read one at a time: in memory are only where each sample begins and how large it is."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from llava_trainer.data.encode import encode
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample, parse_sample
from llava_trainer.data.template import Template

_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSizes:
    """How large the samples of a file are, in its order."""

    tokens: np.ndarray
    """int64 [samples]: tokens of each, its images expanded, at most the length limit."""
    images: np.ndarray
    """int64 [samples]: images that each shows."""
    supervised: np.ndarray
    """int64 [samples]: tokens of each that are learned."""

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def unmeasured(cls, count: int) -> Self:
        """Of so many samples, for whoever only counts them: tokenising a million takes minutes."""
        nothing = np.zeros(count, dtype=np.int64)
        return cls(tokens=nothing, images=nothing, supervised=nothing)


class SampleFile:
    """Samples by their number; may be read from several threads at a time."""

    def __init__(self, path: Path) -> None:
        """Find out where samples begin.

        Raises:
            FileNotFoundError: prepare has not written it.
        """
        self.path = path
        with path.open("rb") as stream:
            lengths = [len(line) for line in stream]
        self._begins = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        self._file = os.open(path, os.O_RDONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return len(self._begins) - 1

    def __getitem__(self, index: int) -> Sample:
        """Read a sample.

        Raises:
            IndexError: there is none of that number.
            ValueError: the file was damaged after it was written.
        """
        try:
            return parse_sample(json.loads(self.read_line(index)))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.path} line {index + 1} is not a sample: {error!r}") from error

    def read_line(self, index: int) -> bytes:
        """A sample's line as it stands in the file, with its end.

        Raises:
            IndexError: there is none of that number.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin, end = int(self._begins[index]), int(self._begins[index + 1])
        return os.pread(self._file, end - begin, begin)

    def measure(self, processor: Processor, template: Template, max_length: int) -> SampleSizes:
        """Sizes of all samples, as prepare has counted them; tokenises those that it has not.

        Raises:
            ValueError: the file was damaged after it was written.
        """
        tokens = np.zeros(len(self), dtype=np.int64)
        images = np.zeros(len(self), dtype=np.int64)
        supervised = np.zeros(len(self), dtype=np.int64)
        for index in range(len(self)):
            sample = self[index]
            tokens[index] = sample.num_tokens or encode(sample, processor, _NO_LIMIT, template).full_length
            images[index] = len(sample.images)
            supervised[index] = sample.num_supervised or encode(sample, processor, max_length, template).num_supervised
        return SampleSizes(tokens=np.minimum(tokens, max_length), images=images, supervised=supervised)
