"""The loss that training minimises, as one module: images and token ids in, a sum over supervised tokens out."""

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_trainer.data.encode import IGNORED
from llava_trainer.model.attention import packing_arguments
from llava_trainer.model.head import add_loss
from llava_trainer.model.tower import has_learning, keep_out_of_graph


class SupervisedLoss(nn.Module):
    """Sums the cross-entropy of the supervised tokens of a batch.

    The sum, not the mean: what it is divided by must be counted over every process and micro-batch of a step, and
    only the loop knows that. The language model's head runs on supervised positions only, and on a piece of them at a
    time (``llava_trainer.model.head``).
    """

    def __init__(self, tuned: PeftModel | LlavaForConditionalGeneration, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.tuned = tuned
        llava = self._llava
        # The cache that generation needs only costs memory here, and with it samples packed into one row would see
        # each other. Setting it on the outer configuration has no effect.
        llava.config.text_config.use_cache = False
        tower = llava.model.vision_tower
        self._learns_tower = has_learning(tower)
        keep_out_of_graph(tower)
        add_loss(llava.lm_head)
        if gradient_checkpointing:
            # Only in what learns, and not re-entrant: neither needs enable_input_require_grads, which would make a
            # frozen tower build a graph.
            for part in (llava.model.language_model, *((tower,) if self._learns_tower else ())):
                part.activation_checkpointing_enable({"use_reentrant": False})

    @property
    def _llava(self) -> Any:
        return self.tuned.get_base_model() if isinstance(self.tuned, PeftModel) else self.tuned

    def train(self, mode: bool = True) -> "SupervisedLoss":
        """Switch everything to training but a frozen tower: frozen also means without dropout.

        Quantised layers stay as they are for training. They compute the same in either mode, but out of training
        bitsandbytes (0.50, ``Linear4bit.forward``) lays their weights out anew on a CPU with AVX512-BF16, for a kernel
        in bf16 without a backward pass, and does not undo it.
        """
        super().train(mode)
        if not self._learns_tower:
            self._llava.model.vision_tower.eval()
        for module in self._llava.modules():
            if _is_quantised(module):
                module.training = True
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        pixel_values: torch.Tensor | None,
        position_ids: torch.Tensor | None = None,
        cu_seq_lens: torch.Tensor | None = None,
        max_seq_len: int | None = None,
        predicting: torch.Tensor | None = None,
        image_places: torch.Tensor | None = None,
        each: bool = False,
        parts: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Sum the loss of one micro-batch, filled up on the right or packed.

        What follows from other arguments is found here where it is left out, for which a GPU has to be waited for.

        Args:
            input_ids: (rows, length), images' tokens expanded.
            labels: (rows, length), not shifted, IGNORED where nothing is learned.
            pixel_values: (images, 3, height, width) in the order in which they appear; None without images.
            position_ids: (rows, length), beginning at 0 with each sample of a row; only where rows are packed.
            cu_seq_lens: int32 (samples + 1,), with ``position_ids``: where samples begin, and where the last one ends.
            max_seq_len: with ``position_ids``: tokens of the longest sample.
            predicting: (supervised,) flat positions whose following token is learned.
            image_places: (image tokens,) flat positions of images' tokens.
            each: judge each token instead of summing them up: without a graph, for validation.
            parts: return what was summed up as well.

        Returns:
            Scalar in fp32: the sum over supervised tokens of -log p. Zero, with a graph, if there are none. With
            ``each``, (supervised, 2) in fp32 as ``head.judge_tokens`` has it. With ``parts``, the sum and, without a
            graph, (supervised,) in fp32.

        Raises:
            ValueError: images' tokens are not as many as their features.
        """
        llava = self._llava
        packed = {}
        if position_ids is not None:
            packed = packing_arguments(llava.config, position_ids, cu_seq_lens, max_seq_len)
        # Filled up on the right, rows need no mask (``llava_trainer.model.attention``).
        hidden = llava.model.language_model(
            inputs_embeds=_embed(llava, input_ids, pixel_values, image_places), use_cache=False, **packed
        ).last_hidden_state
        if predicting is None:
            predicting = find_predicting(labels)
        targets = labels.flatten()[predicting + 1]
        chosen = hidden.flatten(0, 1)[predicting]
        if each:
            judged: torch.Tensor = llava.lm_head(chosen, targets, each=True)
            return judged
        loss, losses = llava.lm_head(chosen, targets)
        if predicting.numel() == 0:
            # An empty selection has no graph to the parameters, yet every process must take part in every reduction.
            loss = loss + 0.0 * hidden.sum()
        return (loss, losses) if parts else loss


def _is_quantised(module: nn.Module) -> bool:
    """Whether its own weight is one of bitsandbytes', which is not imported for the sake of asking."""
    return any(hasattr(parameter, "quant_state") for parameter in module.parameters(recurse=False))


def find_image_places(input_ids: torch.Tensor, image_token_id: int) -> torch.Tensor:
    """Flat positions in ``input_ids`` (rows, length) of images' tokens."""
    return (input_ids.flatten() == image_token_id).nonzero().squeeze(1)


def find_predicting(labels: torch.Tensor) -> torch.Tensor:
    """Flat positions in ``labels`` (rows, length) whose following token in the same row is learned."""
    following = torch.full_like(labels, IGNORED)
    following[:, :-1] = labels[:, 1:]
    return (following.flatten() != IGNORED).nonzero().squeeze(1)


def _embed(
    llava: Any, input_ids: torch.Tensor, pixel_values: torch.Tensor | None, places: torch.Tensor | None
) -> torch.Tensor:
    """Embeddings of tokens and images, as LlavaModel's own forward makes them; without images, of a blank one to 0.

    A projector without gradient would leave the other processes waiting. And ZeRO-3 fetches a module's weights from all
    processes when it runs: each of them must run the same modules in the same order, whatever its samples show.
    """
    embedded: torch.Tensor = llava.get_input_embeddings()(input_ids)
    size_px = llava.config.vision_config.image_size
    if pixel_values is None:
        blank = torch.zeros(1, 3, size_px, size_px, dtype=llava.dtype, device=input_ids.device)
        return embedded + 0.0 * _look_at(llava, blank).sum()
    features = _look_at(llava, pixel_values).to(embedded.dtype)
    if places is None:
        places = find_image_places(input_ids, llava.config.image_token_id)
    if len(places) != len(features):
        raise ValueError(f"{len(places)} tokens stand for images, which have {len(features)} features")
    # By number: under a mask, as LlavaModel does it, how many there are would be asked of the GPU, also going backward.
    return embedded.flatten(0, 1).index_put((places,), features).view_as(embedded)


def _look_at(llava: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the projector makes of images: (tokens of all of them, width)."""
    return torch.cat(tuple(llava.get_image_features(pixel_values=pixel_values).pooler_output))
