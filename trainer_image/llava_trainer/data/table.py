"""What is remembered of every usable sample: numbers in typed columns, while the samples themselves wait on the disk.

About 40 bytes a sample, 20 a question and 8 a picture shown; with the facts of the pictures (``check``) some 500 bytes
for a sample with a picture of its own, whatever its length. Knows nothing about files.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llava_trainer.data.check import Checked


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Samples that must stay on one side of a split, since they share pictures or, without any, their opening question.

    Attributes:
        key: the same for the same content, whatever order or form the export is in.
        weight: questions in it.
    """

    key: int
    weight: int


class Table:
    """Facts about samples, by the order in which they were added; read as numpy arrays."""

    def __init__(self) -> None:
        self._tokens, self._supervised, self._characters = array("I"), array("I"), array("I")
        self._num_pairs, self._node, self._from_validation = array("I"), array("I"), array("B")
        self._pair_key, self._pair_answer = array("Q"), array("Q")
        self._shown_by, self._shown = array("I"), array("I")
        self._nodes: dict[bytes, int] = {}
        self._node_key, self._parent = array("Q"), array("I")

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, checked: Checked, *, from_validation: bool) -> None:
        """Take in the facts of one sample."""
        sample = checked.sample
        nodes = [self._node_of(picture.digest) for picture in checked.pictures]
        for node in nodes:
            self._shown_by.append(len(self))
            self._shown.append(node)
        if not nodes:
            nodes = [self._node_of(_digest_of(b"text", sample.turns[0].text.encode()))]
        for node in nodes[1:]:
            self._join(nodes[0], node)
        self._node.append(nodes[0])
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
        """uint64 [pairs]: the same for the same question about the same pictures."""
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
    def num_pictures(self) -> np.ndarray:
        """int64 [samples]: pictures that each shows."""
        return np.bincount(self.shown[0], minlength=len(self))

    @property
    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """Pictures shown, two arrays of one length: the sample, and the number of the picture's content."""
        return np.array(self._shown_by, dtype=np.uint32), np.array(self._shown, dtype=np.uint32)

    def num_characters(self, index: int) -> int:
        """Characters of a rendered conversation that are left after cutting off."""
        return self._characters[index]

    def groups(self) -> tuple[np.ndarray, list[Group]]:
        """The group of each sample, int64 [samples], and the groups."""
        roots = np.array([self._root(node) for node in range(len(self._parent))], dtype=np.int64)
        keys = np.full(len(roots), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(keys, roots, np.array(self._node_key, dtype=np.uint64))
        used, group_of = np.unique(roots[np.array(self._node, dtype=np.int64)], return_inverse=True)
        weights = np.bincount(group_of, weights=self.num_pairs, minlength=len(used))
        found = [Group(key=int(keys[root]), weight=int(weight)) for root, weight in zip(used, weights, strict=True)]
        return group_of, found

    def contents_of(self, samples: np.ndarray) -> set[bytes]:
        """Digests of the pictures that the chosen samples (bool [samples]) show."""
        shown_by, shown = self.shown
        chosen = set(shown[samples[shown_by]].tolist())
        return {digest for digest, node in self._nodes.items() if node in chosen}

    def samples_that_show(self, contents: set[bytes]) -> np.ndarray:
        """int64: numbers of the samples that show one of the pictures with these digests, in their order."""
        nodes = np.array([node for digest, node in self._nodes.items() if digest in contents], dtype=np.uint32)
        shown_by, shown = self.shown
        return np.unique(shown_by[np.isin(shown, nodes)])

    def _node_of(self, digest: bytes) -> int:
        node = self._nodes.setdefault(digest, len(self._parent))
        if node == len(self._parent):
            self._parent.append(node)
            self._node_key.append(int.from_bytes(digest[:8], "little"))
        return node

    def _root(self, node: int) -> int:
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def _join(self, first: int, second: int) -> None:
        self._parent[self._root(second)] = self._root(first)


def pair_keys(checked: Checked) -> Iterator[tuple[int, int]]:
    """For each pair a number for its question about its pictures, and one for its answer.

    Letter case and white space do not make another question. Without a picture, what was said before belongs to the
    question: "Why?" is another one after another answer.
    """
    context = b"".join(sorted(picture.digest for picture in checked.pictures))
    for before, question, answer in checked.sample.pairs():
        history = () if context else tuple(_fold(turn.text) for turn in before)
        key = _digest_of(context, *history, _fold(question.text))
        yield int.from_bytes(key[:8], "little"), int.from_bytes(_digest_of(answer.text.encode())[:8], "little")


def _fold(text: str) -> bytes:
    return " ".join(text.casefold().split()).encode()


def _digest_of(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
