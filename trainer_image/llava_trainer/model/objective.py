"""The loss that training minimises, as one module: pictures and token ids in, a sum over supervised tokens out."""

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy

from llava_trainer.data.encode import IGNORED


class SupervisedLoss(nn.Module):
    """Sums the cross-entropy of the supervised tokens of a batch.

    The sum, not the mean: what it is divided by must be counted over every process and micro-batch of a step, and
    only the loop knows that. The language model's head runs on supervised positions only; at LLaVA's vocabulary of
    32,064 the logits of every position would take more memory than anything else.
    """

    def __init__(self, tuned: PeftModel, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.tuned = tuned
        llava = tuned.get_base_model()
        # The cache that generation needs only costs memory here. Setting it on the outer configuration has no effect.
        llava.config.text_config.use_cache = False
        _freeze_tower(llava.model.vision_tower)
        if gradient_checkpointing:
            # Only in the language model, and not re-entrant: neither needs enable_input_require_grads, which would
            # make the frozen tower build a graph.
            llava.model.language_model.activation_checkpointing_enable({"use_reentrant": False})

    def train(self, mode: bool = True) -> "SupervisedLoss":
        """Switch everything to training but the tower: frozen also means without dropout."""
        super().train(mode)
        self.tuned.get_base_model().model.vision_tower.eval()
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        pixel_values: torch.Tensor | None,
    ) -> torch.Tensor:
        """Sum the loss of one micro-batch.

        Args:
            input_ids: (batch, length), pictures' tokens expanded.
            attention_mask: (batch, length), 0 on padding.
            labels: (batch, length), not shifted, IGNORED where nothing is learned.
            pixel_values: (pictures, 3, height, width) in the order in which they appear; None without pictures.

        Returns:
            Scalar in fp32: the sum over supervised tokens of -log p. Zero, with a graph, if there are none.
        """
        llava = self.tuned.get_base_model()
        hidden = llava.model(
            input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, use_cache=False
        ).last_hidden_state
        targets = labels[:, 1:]
        supervised = targets != IGNORED
        logits = llava.lm_head(hidden[:, :-1][supervised]).float()
        loss = cross_entropy(logits, targets[supervised], reduction="sum")
        if pixel_values is None:
            loss = loss + _unseen_picture(llava, input_ids.device)
        if not supervised.any():
            # An empty selection has no graph to the parameters, yet every process must take part in every reduction.
            loss = loss + 0.0 * hidden.sum()
        return loss


def _unseen_picture(llava: Any, device: torch.device) -> torch.Tensor:
    """Zero, computed from a blank picture: a projector without gradient would leave the other processes waiting."""
    size_px = llava.config.vision_config.image_size
    blank = torch.zeros(1, 3, size_px, size_px, dtype=llava.dtype, device=device)
    features = llava.get_image_features(pixel_values=blank).pooler_output
    return 0.0 * torch.cat(tuple(features)).float().sum()


def _freeze_tower(tower: nn.Module) -> None:
    """Run the tower without a graph, whatever hooks anyone puts on it."""
    tower.requires_grad_(False)
    tower.forward = torch.no_grad()(tower.forward)
