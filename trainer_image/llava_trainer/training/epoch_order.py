"""In which order an epoch sees its samples, so that those of like length and kind stand in one batch.

A batch is filled up to its longest sample, and where only some of its samples show an image the others' processes
compute one for nothing. LLaVA groups by modality (LengthGroupedSampler in its llava_trainer.py): samples of each kind
are drawn in random order and cut into mega-batches, which come in random order, and what is left of both kinds comes
last. Its lengths count words; ours are tokens with images expanded. Its mega-batch is one global batch, so that 8 %
of what is computed is filling on LLaVA's own mixture; ours are two (4.5 %), or 256 samples where that is more.
"""

from typing import Literal

import numpy as np

from llava_trainer.data.sample_file import SampleSizes

Grouping = Literal["modality", "length", "none"]

_MODALITY_MEGA_SAMPLES = 256
_MODALITY_MEGA_BATCHES = 2
_LENGTH_MEGA_BATCHES = 50
"""As in transformers' group_by_length: batches become alike, yet differ from epoch to epoch."""


def order_epoch(
    sizes: SampleSizes,
    grouping: Grouping,
    global_batch: int,
    seed: int,
    epoch: int,
    members: np.ndarray | None = None,
) -> np.ndarray:
    """Order of the samples in ``epoch``: a permutation; every ``global_batch`` of it are one batch.

    Depends on nothing but its arguments, above all not on the number of ranks.

    Args:
        sizes: of all samples.
        grouping: which of them stand side by side.
        global_batch: samples of a batch.
        seed: of all random choices.
        epoch: from 0.
        members: int64 [samples of the epoch]: which samples it has; None for all of them.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(sizes) if members is None else len(members))
    if members is not None:
        order = members[order]
    if grouping == "none":
        return order
    if grouping == "length":
        kinds, mega_batches = [order], _LENGTH_MEGA_BATCHES
    else:
        shows_image = sizes.images[order] > 0
        kinds = [order[shows_image], order[~shows_image]]
        mega_batches = max(_MODALITY_MEGA_BATCHES, -(-_MODALITY_MEGA_SAMPLES // global_batch))
    batches: list[np.ndarray] = []
    left_over: list[np.ndarray] = []
    for kind in kinds:
        whole = len(kind) // global_batch * global_batch
        for begin in range(0, whole, mega_batches * global_batch):
            mega = kind[begin : min(whole, begin + mega_batches * global_batch)]
            by_length = mega[np.argsort(-sizes.tokens[mega], kind="stable")]
            batches.extend(by_length.reshape(-1, global_batch))
        left_over.append(kind[whole:])
    shuffled = [batches[index] for index in rng.permutation(len(batches))]
    return np.concatenate([*shuffled, *left_over])
