"""Samples packed end to end are learned as if each stood alone: same loss, same gradients, images in their places."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_trainer.data.collate import Batch, Item, collate, collate_packed
from llava_trainer.data.encode import encode
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.model.loading import load_model
from llava_trainer.model.objective import SupervisedLoss
from tests.tiny.base import IMAGE_PX

LEARNING = ("multi_modal_projector", "q_proj", "down_proj")


def make_items(processor: Processor) -> list[Item]:
    """Two samples with an image, one with two images in different turns, two without; of different lengths."""
    rng = np.random.default_rng(0)
    items = []
    for number, image_turns in enumerate(((0,), (), (0, 2), (0,), ())):
        answer = " ".join(["red", "blue", "green"][: 1 + number % 3] * (1 + number))
        exchange = (Turn(role="user", text="What is this?"), Turn(role="assistant", text=answer))
        sample = Sample(
            id=str(number),
            images=("p.png",) * len(image_turns),
            image_turns=image_turns,
            turns=exchange * max(1, len(image_turns)),
            source=Source(file="f", index=number),
        )
        pixels = rng.standard_normal((len(image_turns), 3, IMAGE_PX, IMAGE_PX)).astype(np.float32)
        items.append((encode(sample, processor, 512), pixels if image_turns else None))
    return items


def make_module(folder: Path, attention: str = "sdpa") -> SupervisedLoss:
    module = SupervisedLoss(load_model(folder, torch.float32, "cpu", attention), gradient_checkpointing=False)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("vision_tower" not in name and any(part in name for part in LEARNING))
    return module.train()


def learn(module: SupervisedLoss, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """Sum of the losses, and the gradients of all of it."""
    module.zero_grad()
    total = 0.0
    for batch in batches:
        loss = module(**batch)
        torch.autograd.backward(loss)
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [[[0, 1, 2, 3, 4]], [[2, 0], [4, 3, 1]], [[1, 4], [0, 2, 3]]])
def test_packed_samples_are_learned_as_if_each_stood_alone(
    toy_model_dir: Path, toy_processor: Processor, attention: str, rows: list[list[int]]
):
    items = make_items(toy_processor)
    module = make_module(toy_model_dir, attention)
    packed = collate_packed([[items[index] for index in row] for row in rows], toy_processor.pad_token_id)
    loss, gradients = learn(module, [packed])
    expected_loss, expected = learn(module, [collate([item], toy_processor.pad_token_id) for item in items])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6 * expected[name].abs().max().item())


def test_the_proof_would_see_samples_that_see_each_other(toy_model_dir: Path, toy_processor: Processor):
    module = make_module(toy_model_dir)
    packed = collate_packed([make_items(toy_processor)], toy_processor.pad_token_id)
    loss, _ = learn(module, [packed])
    mixed, _ = learn(module, [packed | {"position_ids": None}])
    assert abs(mixed - loss) > 1e-3 * loss


def test_the_proof_would_see_images_in_each_others_place(toy_model_dir: Path, toy_processor: Processor):
    module = make_module(toy_model_dir)
    packed = collate_packed([make_items(toy_processor)], toy_processor.pad_token_id)
    loss, _ = learn(module, [packed])
    exchanged, _ = learn(module, [packed | {"pixel_values": packed["pixel_values"].flip(0)}])
    assert abs(exchanged - loss) > 1e-5 * loss


def test_a_sample_is_not_predicted_from_the_one_before_it(toy_processor: Processor):
    (first, _), *_ = make_items(toy_processor)
    # A sample whose very first token is learned.
    bare = dataclasses.replace(first, input_ids=(7, 8, 9), labels=(7, 8, 9))
    packed = collate_packed([[(first, None), (bare, None)]], pad_token_id=0)
    begin = first.num_tokens
    assert packed["labels"][0, begin:].tolist() == [-100, 8, 9]
    assert packed["predicting"][-2:].tolist() == [begin, begin + 1]
    assert packed["position_ids"][0, begin - 1 :].tolist() == [begin - 1, 0, 1, 2]


def test_rows_are_filled_up_as_if_another_sample_stood_there(toy_processor: Processor):
    (first, _), (second, _), *_ = make_items(toy_processor)
    packed = collate_packed([[(first, None)], [(second, None)]], pad_token_id=3)
    assert set(packed) == {
        "input_ids", "labels", "pixel_values", "predicting", "position_ids", "cu_seq_lens", "max_seq_len"
    }  # fmt: skip
    shorter, longest = sorted((first.num_tokens, second.num_tokens))
    row = int(first.num_tokens > second.num_tokens)
    assert packed["position_ids"][row, shorter:].tolist() == list(range(longest - shorter))
    assert packed["input_ids"][row, shorter:].unique().tolist() == [3]
    assert packed["labels"][row, shorter:].unique().tolist() == [-100]
