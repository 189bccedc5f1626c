"""What is remembered of every usable sample: numbers in typed columns, while the samples themselves wait on the disk.

About 40 bytes a sample, 20 a question and 8 an image shown; with the facts of the images (``check``) some 500 bytes
for a sample with an image of its own, whatever its length. Knows nothing about files.
"""

import hashlib
from array import array
from collections.abc import Iterator

import numpy as np

from llava_trainer.data.check import Checked
from llava_trainer.data.split import Contents, Group


class SampleTable:
    """Facts about samples, by the order in which they were added; read as numpy arrays."""

    def __init__(self) -> None:
        self._tokens, self._supervised, self._characters = array("I"), array("I"), array("I")
        self._num_pairs, self._content, self._from_validation = array("I"), array("I"), array("B")
        self._pair_key, self._pair_answer = array("Q"), array("Q")
        self._shown_by, self._shown = array("I"), array("I")
        self._belongs, self._named = array("I"), array("I")
        self._contents = Contents()

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, checked: Checked, *, from_validation: bool) -> None:
        """Take in the facts of one sample."""
        sample = checked.sample
        contents = [self._contents.number_of(image.digest) for image in checked.images]
        for content in contents:
            self._shown_by.append(len(self))
            self._shown.append(content)
        if not contents:
            contents = [self._contents.number_of(_digest_of(b"text", sample.turns[0].text.encode()))]
        joined = contents
        if sample.group:
            named = self._contents.number_of(_digest_of(b"group", sample.group.encode()), named=True)
            joined = [*contents, named]
            self._belongs.append(len(self))
            self._named.append(named)
        self._contents.join(joined)
        self._content.append(contents[0])
        for key, answer in pair_keys(checked):
            self._pair_key.append(key)
            self._pair_answer.append(answer)
        self._num_pairs.append(sample.num_pairs)
        self._tokens.append(checked.num_tokens)
        self._supervised.append(checked.num_supervised)
        self._characters.append(checked.num_characters)
        self._from_validation.append(from_validation)

    @property
    def tokens(self) -> np.ndarray:
        """uint32 [samples]: tokens before cutting off."""
        return np.array(self._tokens, dtype=np.uint32)

    @property
    def supervised(self) -> np.ndarray:
        """uint32 [samples]: tokens that are learned, after cutting off."""
        return np.array(self._supervised, dtype=np.uint32)

    @property
    def num_pairs(self) -> np.ndarray:
        """uint32 [samples]: questions with their answers."""
        return np.array(self._num_pairs, dtype=np.uint32)

    @property
    def from_validation(self) -> np.ndarray:
        """Bool [samples]: whether it comes from the file with held-out samples."""
        return np.array(self._from_validation, dtype=bool)

    @property
    def pair_keys(self) -> np.ndarray:
        """uint64 [pairs]: the same for the same question about the same images."""
        return np.array(self._pair_key, dtype=np.uint64)

    @property
    def pair_answers(self) -> np.ndarray:
        """uint64 [pairs]: the same for the same answer."""
        return np.array(self._pair_answer, dtype=np.uint64)

    @property
    def pair_owners(self) -> np.ndarray:
        """int64 [pairs]: the sample of each."""
        return np.repeat(np.arange(len(self)), self.num_pairs)

    @property
    def num_images(self) -> np.ndarray:
        """int64 [samples]: images that each shows."""
        return np.bincount(self.shown[0], minlength=len(self))

    @property
    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """Images shown, two arrays of one length: the sample, and the number of the image's content."""
        return np.array(self._shown_by, dtype=np.uint32), np.array(self._shown, dtype=np.uint32)

    def num_characters(self, index: int) -> int:
        """Characters of a rendered conversation that are left after cutting off."""
        return self._characters[index]

    def groups(self) -> tuple[np.ndarray, list[Group]]:
        """The group of each sample, int64 [samples], and the groups."""
        return self._contents.group(np.array(self._content, dtype=np.int64), self.num_pairs)

    @property
    def _ties(self) -> tuple[np.ndarray, np.ndarray]:
        """What ties samples to others, two arrays of one length: the sample, and the number of the content.

        Images that it shows, or its opening question where it shows none; and the group that it names.
        """
        shown_by, shown = self.shown
        owners = (shown_by, np.array(self._belongs, dtype=np.uint32), np.arange(len(self), dtype=np.uint32))
        contents = (shown, np.array(self._named, dtype=np.uint32), np.array(self._content, dtype=np.uint32))
        return np.concatenate(owners), np.concatenate(contents)

    def contents_of(self, samples: np.ndarray) -> set[bytes]:
        """Digests of what ties the chosen samples (bool [samples]) to others: images, opening questions, groups."""
        owners, contents = self._ties
        chosen = set(contents[samples[owners]].tolist())
        return {digest for digest, number in self._contents.numbers.items() if number in chosen}

    def samples_with(self, contents: set[bytes]) -> np.ndarray:
        """int64: numbers of the samples that show, ask or name one of the contents with these digests, in order."""
        known = self._contents.numbers
        numbers = np.array([number for digest, number in known.items() if digest in contents], dtype=np.uint32)
        owners, found = self._ties
        return np.unique(owners[np.isin(found, numbers)])


def pair_keys(checked: Checked) -> Iterator[tuple[int, int]]:
    """For each pair a number for its question about its images, and one for its answer.

    Letter case and white space do not make another question. Without an image, what was said before belongs to the
    question: "Why?" is another one after another answer. So does a system message of its own.
    """
    context = b"".join(sorted(image.digest for image in checked.images))
    for before, question, answer in checked.sample.pairs():
        history = () if context else tuple(_fold(turn.text) for turn in before)
        system = (_fold(checked.sample.system),) if checked.sample.system else ()
        key = _digest_of(context, *system, *history, _fold(question.text))
        yield int.from_bytes(key[:8], "little"), int.from_bytes(_digest_of(answer.text.encode())[:8], "little")


def _fold(text: str) -> bytes:
    return " ".join(text.casefold().split()).encode()


def _digest_of(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
