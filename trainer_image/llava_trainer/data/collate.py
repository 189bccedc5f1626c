"""Batches of encoded samples. The only module here that knows torch."""

from collections.abc import Sequence

import numpy as np
import torch

from llava_trainer.data.encode import IGNORED, Encoded

Batch = dict[str, torch.Tensor | None]


def collate(items: Sequence[tuple[Encoded, np.ndarray | None]], pad_token_id: int) -> Batch:
    """Fill samples up to the longest of them, on the right.

    Args:
        items: samples with their pictures' pixels (float32, [pictures, 3, H, W]), None without a picture.
        pad_token_id: what fills ``input_ids``.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` (int64, [batch, longest]; 0 and -100 where filled up), and
        ``pixel_values`` (float32, [pictures, 3, H, W]) of all samples in their order; None if none shows one.
    """
    shape = (len(items), max(encoded.num_tokens for encoded, _ in items))
    input_ids = torch.full(shape, pad_token_id)
    labels = torch.full(shape, IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for row, (encoded, _) in enumerate(items):
        length = encoded.num_tokens
        input_ids[row, :length] = torch.tensor(encoded.input_ids)
        labels[row, :length] = torch.tensor(encoded.labels)
        attention_mask[row, :length] = 1
    pixels = [torch.from_numpy(np.ascontiguousarray(pictures)) for _, pictures in items if pictures is not None]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "pixel_values": torch.cat(pixels) if pixels else None,
    }
