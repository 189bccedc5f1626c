"""Samples of training's own dataset and of its mixture, one after the other under one numbering."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.processor import Processor
from llava_trainer.data.sample_file import SampleFile, SampleSizes
from llava_trainer.data.samples import Sample
from llava_trainer.data.template import Template


@dataclass(frozen=True, kw_only=True)
class MixedFile:
    """One dataset of the mixture."""

    samples: SampleFile
    images: ImageFolder


class MixedSamples:
    """Samples by their number: first those of the dataset itself, then those of each dataset of the mixture.

    Each dataset has a folder of images of its own. Whoever loads a sample knows the first one's, so samples of the
    mixture name their images by whole paths.
    """

    def __init__(self, main: SampleFile, mixed: Sequence[MixedFile]) -> None:
        self._main, self._mixed = main, mixed
        self.sizes_mixed = tuple(len(one.samples) for one in mixed)
        """Samples of each dataset of the mixture."""
        self._begins = np.cumsum([0, len(main), *self.sizes_mixed])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, index: int) -> Sample:
        """Read a sample.

        Raises:
            IndexError: there is none of that number.
            ValueError: the file was damaged after it was written.
        """
        part, inside = self._divide(index)
        if part == 0:
            return self._main[inside]
        mixed = self._mixed[part - 1]
        sample = mixed.samples[inside]
        return replace(sample, images=tuple(str(mixed.images.find(image).absolute()) for image in sample.images))

    def describe_place(self, index: int) -> str:
        """Where a sample stands, for a person: its file and the line, counted from 1.

        Raises:
            IndexError: there is none of that number.
        """
        part, inside = self._divide(index)
        file = self._main if part == 0 else self._mixed[part - 1].samples
        return f"{file.path.name} line {inside + 1}"

    def measure(self, processor: Processor, template: Template, max_length: int) -> SampleSizes:
        """Sizes of all samples, as ``SampleFile.measure``."""
        files = (self._main, *(one.samples for one in self._mixed))
        return join_sizes([file.measure(processor, template, max_length) for file in files])

    def _divide(self, index: int) -> tuple[int, int]:
        """Which of the files, and the number of the sample in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._begins, index, side="right")) - 1
        return part, index - int(self._begins[part])


def join_sizes(parts: Sequence[SampleSizes]) -> SampleSizes:
    """Sizes of the samples of several files, in their order."""
    return SampleSizes(
        tokens=np.concatenate([part.tokens for part in parts]),
        images=np.concatenate([part.images for part in parts]),
        supervised=np.concatenate([part.supervised for part in parts]),
    )


def count_drawn(num_main: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Samples that an epoch has of each dataset of the mixture, at least one.

    With N samples of the dataset itself and shares s, an epoch has N / (1 - sum(s)) in all.

    Raises:
        ValueError: the shares leave nothing for the dataset itself.
    """
    rest = 1 - sum(shares)
    if rest <= 0 or any(share <= 0 for share in shares):
        raise ValueError(f"shares {', '.join(f'{share:g}' for share in shares)} must be more than 0, and less than 1 "
                         "together")  # fmt: skip
    return tuple(max(1, round(num_main * share / rest)) for share in shares)
