"""Batches of encoded samples, padded or packed. The only module here that knows torch."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from llava_trainer.data.encode import IGNORED, Encoded

Batch = dict[str, torch.Tensor | int | None]
Item = tuple[Encoded, np.ndarray | None]
"""A sample with its images' pixels (float32, [images, 3, H, W]), None without an image."""


def collate(items: Sequence[Item], pad_token_id: int) -> Batch:
    """Fill samples up to the longest of them, on the right.

    Args:
        items: samples.
        pad_token_id: what fills ``input_ids``.

    Returns:
        ``input_ids`` and ``labels`` (int64, [batch, longest]; -100 where filled up), ``pixel_values`` (float32,
        [images, 3, H, W]) of all samples in their order, None if none shows one, and ``predicting`` (int64,
        [supervised]): flat positions whose following token is learned. No mask: attention is causal, and what is filled
        up stands behind.
    """
    return _lay_out([(item,) for item in items], pad_token_id)


def collate_packed(rows: Sequence[Sequence[Item]], pad_token_id: int) -> Batch:
    """Lay the samples of each row end to end, and fill rows up to the longest of them.

    Returns:
        As ``collate``, with ``position_ids`` (int64, [rows, longest]): they begin at 0 with every sample, and where a
        row is filled up, as if one more sample stood there; ``cu_seq_lens`` (int32, [samples + 1]): where these begin
        in all rows laid end to end, and where the last one ends; and ``max_seq_len``, tokens of the longest of them.
    """
    counts = [[encoded.num_tokens for encoded, _ in row] for row in rows]
    longest = max(sum(row) for row in counts)
    filled = [[*row, longest - sum(row)] if sum(row) < longest else row for row in counts]
    positions = [torch.cat([torch.arange(count) for count in row]) for row in filled]
    samples = [count for row in filled for count in row]
    return _lay_out(rows, pad_token_id) | {
        "position_ids": torch.stack(positions),
        "cu_seq_lens": torch.tensor([0, *itertools.accumulate(samples)], dtype=torch.int32),
        "max_seq_len": max(samples),
    }


def _lay_out(rows: Sequence[Sequence[Item]], pad_token_id: int) -> Batch:
    shape = (len(rows), max(sum(encoded.num_tokens for encoded, _ in row) for row in rows))
    input_ids = torch.full(shape, pad_token_id)
    labels = torch.full(shape, IGNORED)
    for number, row in enumerate(rows):
        begin = 0
        for encoded, _ in row:
            end = begin + encoded.num_tokens
            input_ids[number, begin:end] = torch.tensor(encoded.input_ids)
            labels[number, begin:end] = torch.tensor(encoded.labels)
            # Nothing comes before it that it could be predicted from, least of all another sample.
            labels[number, begin] = IGNORED
            begin = end
    pixels = [torch.from_numpy(np.ascontiguousarray(seen)) for row in rows for _, seen in row if seen is not None]
    # A row's first label is never learned: what follows flat position p in the tensor follows it in its row.
    learned = (labels.flatten() != IGNORED).nonzero().squeeze(1)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "pixel_values": torch.cat(pixels) if pixels else None,
        "predicting": learned - 1,
    }
