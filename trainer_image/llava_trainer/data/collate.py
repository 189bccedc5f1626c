"""Batches of encoded samples, padded or packed. The only module here that knows torch."""

from collections.abc import Sequence

import numpy as np
import torch

from llava_trainer.data.encode import IGNORED, Encoded

Batch = dict[str, torch.Tensor | None]
Item = tuple[Encoded, np.ndarray | None]
"""A sample with its images' pixels (float32, [images, 3, H, W]), None without an image."""


def collate(items: Sequence[Item], pad_token_id: int) -> Batch:
    """Fill samples up to the longest of them, on the right.

    Args:
        items: samples.
        pad_token_id: what fills ``input_ids``.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` (int64, [batch, longest]; 0 and -100 where filled up),
        ``pixel_values`` (float32, [images, 3, H, W]) of all samples in their order, None if none shows one, and
        ``predicting`` (int64, [supervised]): flat positions whose following token is learned.
    """
    rows = [(item,) for item in items]
    mask = [torch.ones(encoded.num_tokens, dtype=torch.int64) for encoded, _ in items]
    return _lay_out(rows, pad_token_id) | {"attention_mask": torch.nn.utils.rnn.pad_sequence(mask, batch_first=True)}


def collate_packed(rows: Sequence[Sequence[Item]], pad_token_id: int) -> Batch:
    """Lay the samples of each row end to end, and fill rows up to the longest of them.

    Returns:
        As ``collate``, with ``position_ids`` (int64, [rows, longest]) in place of ``attention_mask``: they begin at 0
        with every sample, and where a row is filled up. transformers tells by them who may see whom.
    """
    positions = [torch.cat([torch.arange(encoded.num_tokens) for encoded, _ in row]) for row in rows]
    longest = max(len(row) for row in positions)
    filled = [torch.cat((row, torch.arange(longest - len(row)))) for row in positions]
    return _lay_out(rows, pad_token_id) | {"position_ids": torch.stack(filled)}


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
