"""Batches: filled up on the right, nothing learned there."""

import numpy as np
import torch

from llava_trainer.data.collate import collate
from llava_trainer.data.encode import IGNORED, Encoded


def make(*ids: int, learned: int = 1) -> Encoded:
    labels = (IGNORED,) * (len(ids) - learned) + ids[-learned:]
    return Encoded(
        input_ids=ids,
        labels=labels,
        images=(),
        full_length=len(ids),
        first_answer_length=len(ids),
        num_characters=0,
    )


def test_samples_are_filled_up_on_the_right():
    image = np.full((1, 3, 2, 2), 0.5, dtype=np.float32)
    batch = collate([(make(1, 5, 6), image), (make(1, 7), None), (make(1, 2, 3, 4), image * 2)], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 9], [1, 7, 9, 9], [1, 2, 3, 4]]
    assert set(batch) == {"input_ids", "labels", "pixel_values", "predicting"}
    assert batch["labels"].tolist() == [[-100, -100, 6, -100], [-100, 7, -100, -100], [-100, -100, -100, 4]]
    assert batch["pixel_values"].shape == (2, 3, 2, 2)
    assert batch["pixel_values"][1].eq(1.0).all()
    assert {batch[name].dtype for name in ("input_ids", "labels", "predicting")} == {torch.int64}


def test_without_images_there_are_no_pixels():
    assert collate([(make(1, 2), None)], pad_token_id=0)["pixel_values"] is None
