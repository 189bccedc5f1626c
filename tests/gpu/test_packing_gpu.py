"""Packed rows on a GPU: flash-attn, varlen_attn and sdpa learn from them what samples that stand alone teach."""

from pathlib import Path

import pytest
import torch

from llava_trainer.data.collate import Batch, collate, collate_packed
from llava_trainer.data.processor import load_processor
from llava_trainer.model.attention import CAUSAL_SDPA, FLASH, VARLEN
from llava_trainer.model.loading import load_model
from llava_trainer.model.objective import SupervisedLoss
from tests.tiny.base import make_untrained_base
from tests.trainer.test_packing import LEARNING, make_items

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "base"
    make_untrained_base(folder)
    return folder


def learn(module: SupervisedLoss, batches: list[Batch]) -> tuple[float, torch.Tensor]:
    """Sum of the losses, and all gradients of it as one vector."""
    module.zero_grad()
    total = 0.0
    for batch in batches:
        on_device = {
            name: value.to(CUDA, torch.bfloat16 if value.is_floating_point() else None)
            if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }  # fmt: skip
        loss = module(**on_device)
        torch.autograd.backward(loss)
        total += loss.item()
    return total, torch.cat([p.grad.float().flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("attention", [pytest.param(FLASH, marks=pytest.mark.needs_flash_attn), VARLEN, CAUSAL_SDPA])
@pytest.mark.parametrize("rows", [[[0, 1, 2, 3, 4]], [[2, 0], [4, 3, 1]]], ids=["one-row", "two-rows"])
def test_packed_samples_are_learned_as_if_each_stood_alone(base_dir: Path, attention: str, rows: list[list[int]]):
    processor = load_processor(base_dir, "pad")
    module = SupervisedLoss(load_model(base_dir, torch.bfloat16, CUDA, attention), gradient_checkpointing=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("vision_tower" not in name and any(part in name for part in LEARNING))
    module.train()
    items = make_items(processor)
    packed = collate_packed([[items[index] for index in row] for row in rows], processor.pad_token_id)
    loss, gradients = learn(module, [packed])
    expected_loss, expected = learn(module, [collate([item], processor.pad_token_id) for item in items])
    assert loss == pytest.approx(expected_loss, rel=5e-3)
    assert torch.cosine_similarity(gradients, expected, dim=0) > 0.999
