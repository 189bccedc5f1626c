"""Floating-point operations of training, from a model's shape and what a step goes over. Pure arithmetic.

Counted as torch's FlopCounterMode counts them: matrix products only, two operations a multiply-add, attention without a
discount for what the causal mask hides. Divided by seconds and by ``peak_of`` a GPU, ``Flops.model`` gives the model
FLOPs utilisation (MFU) of PaLM (Chowdhery et al. 2022, appendix B), ``Flops.hardware`` the hardware FLOPs utilisation
(HFU). For MFU, positions are those of the samples, each by itself; for HFU all that were computed, filling included.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llava_api.memory import Method, count_lora, count_parameters
from llava_api.memory.parameters import CLASS_TOKENS, patches
from llava_api.model_facts import ModelFacts
from llava_trainer.data.sample_file import SampleSizes

DENSE_BF16_PEAK = {
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "B200": 2250e12,
}
"""Operations a second by the makers' data sheets, without sparsity; the first name found in a device's counts."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """What a forward and backward pass goes over; sums over samples, rows, micro-batches and ranks may be added up."""

    tokens: int
    pairs: int
    """Query-key pairs of attention: the sum of squared lengths of what attends to itself."""
    images: int
    supervised: int
    """Tokens that are learned: the head runs on no others."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of a forward and a backward pass."""

    model: int
    """Those that the result needs, whatever the implementation."""
    recomputed: int
    """Those that are done a second time to save memory: layers by gradient checkpointing, scores by fused attention."""

    @property
    def hardware(self) -> int:
        """All that the device does."""
        return self.model + self.recomputed


def positions_of_rows(lengths: Iterable[int], *, images: int, supervised: int) -> Positions:
    """Rows (or packed samples, where attention ends at their borders) of these lengths, filling included."""
    known = tuple(lengths)
    return Positions(
        tokens=sum(known), pairs=sum(length * length for length in known), images=images, supervised=supervised
    )


def positions_of_samples(sizes: SampleSizes, samples: Sequence[int]) -> Positions:
    """The samples with these numbers, each by itself and without any filling: what a step has to learn from."""
    chosen = list(samples)
    return positions_of_rows(
        (int(length) for length in sizes.tokens[chosen]),
        images=int(sizes.images[chosen].sum()),
        supervised=int(sizes.supervised[chosen].sum()),
    )


def count_flops(
    model: ModelFacts,
    method: Method,
    positions: Positions,
    *,
    rank: int = 0,
    gradient_checkpointing: bool = False,
    fused_attention: bool = True,
) -> Flops:
    """Operations of a forward and a backward pass over ``positions``.

    A frozen matrix has one product in the backward pass, one that learns has two. The tower has no backward pass; the
    projector learns, and nothing is passed on below it, but gradients run down to it through every layer. PyTorch may
    leave out a layer's very last product when it computes it again, which is less than a thousandth.

    Args:
        model: the model's shape.
        method: what learns; ``projector`` is phase 1.
        positions: what is gone over.
        rank: of the adapter, with lora and qlora.
        gradient_checkpointing: whether layers are computed again in the backward pass.
        fused_attention: whether the scores are computed again in the backward pass, as flash kernels do.
    """
    language = model.language_model
    linear = positions.tokens * 2 * language.layers * count_parameters(model).layer
    lora = positions.tokens * 2 * count_lora(language, rank) if method in ("lora", "qlora") else 0
    # One product of attention: scores, or values weighted by them. The backward pass has two of each.
    product = 2 * positions.pairs * language.hidden * language.layers
    forward = linear + lora + 2 * product
    backward = (2 if method == "full" else 1) * linear + 2 * lora + 4 * product
    head = positions.supervised * 2 * language.hidden * model.vocabulary * (3 if method == "full" else 2)
    images = positions.images * (_tower(model) + _projector(model))
    recomputed = (forward if gradient_checkpointing else 0) + (product if fused_attention else 0)
    return Flops(model=forward + backward + head + images, recomputed=recomputed)


def peak_of(device_name: str) -> float | None:
    """Dense bf16 operations a second of a GPU, if it is in the table."""
    # As words: an RTX A1000 is no A100, a GB200 no B200.
    return next((peak for name, peak in DENSE_BF16_PEAK.items() if re.search(rf"\b{name}\b", device_name)), None)


def _tower(model: ModelFacts) -> int:
    """Forward pass of one image, all of the tower's layers, the last ones for nothing."""
    tower = model.vision_tower
    tokens = patches(model) + CLASS_TOKENS
    layer = 2 * tokens * (4 * tower.hidden**2 + 2 * tower.hidden * tower.intermediate)
    attention = 2 * 2 * tokens**2 * tower.hidden
    patch_embedding = 2 * patches(model) * 3 * model.patch_size_px**2 * tower.hidden
    return tower.layers * (layer + attention) + patch_embedding


def _projector(model: ModelFacts) -> int:
    """Forward pass, gradients of both weights, and of what lies between them."""
    width = model.language_model.hidden
    first, second = model.vision_tower.hidden * len(model.feature_layer) * width, width * width
    return model.tokens_per_image * 2 * (2 * first + 3 * second)
