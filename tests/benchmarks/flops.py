"""Floating-point operations of one micro-batch of LoRA training, counted as torch's FlopCounterMode counts them: matrix
products only, two operations a multiply-add, attention without a discount for what is masked."""

import re
from dataclasses import dataclass

from llava_api.memory import Workload, count_lora
from llava_api.model_facts import ModelFacts, TransformerShape

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
BACKWARD_PRODUCTS_FUSED = 5
"""Products in the backward pass of fused attention: four, and the scores once again."""
BACKWARD_PRODUCTS_EAGER = 4


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of a forward and a backward pass."""

    model: int
    """Without layers that are computed again for gradient checkpointing."""
    recomputed: int

    @property
    def hardware(self) -> int:
        return self.model + self.recomputed


def count_flops(model: ModelFacts, work: Workload, *, backward_products: int = BACKWARD_PRODUCTS_FUSED) -> Flops:
    """Operations of a micro-batch whose rows are all ``work.length`` long, each one sample.

    The weights of the language model are frozen: their backward pass is one product, not two. The tower has none. The
    projector is trained, and nothing is passed on below it. PyTorch may leave out a layer's very last product when it
    computes it again, which is less than a thousandth.
    """
    language = model.language_model
    linear = work.tokens * 2 * language.layers * _weights_of_layer(language)
    lora = work.tokens * 2 * count_lora(language, work.rank)
    product = 2 * work.tokens * work.length * language.hidden * language.layers
    layers = linear + lora + 2 * product
    backward = linear + 2 * lora + backward_products * product
    head = 2 * 2 * work.supervised * language.hidden * model.vocabulary
    images = work.pictures * (_tower(model) + _projector(model))
    return Flops(model=layers + backward + head + images, recomputed=layers if work.gradient_checkpointing else 0)


def peak_of(device_name: str) -> float | None:
    """Dense bf16 operations a second of a card, if it is in the table."""
    # As words: an RTX A1000 is no A100, a GB200 no B200.
    return next((peak for name, peak in DENSE_BF16_PEAK.items() if re.search(rf"\b{name}\b", device_name)), None)


def _weights_of_layer(shape: TransformerShape) -> int:
    keys_and_values = 2 * shape.hidden * (shape.hidden // shape.heads * shape.key_value_heads)
    return 2 * shape.hidden**2 + keys_and_values + 3 * shape.hidden * shape.intermediate


def _tower(model: ModelFacts) -> int:
    """Forward pass of one image, all of the tower's layers, the last ones for nothing."""
    tower = model.vision_tower
    patches = (model.image_size_px // model.patch_size_px) ** 2
    tokens = patches + 1
    layer = 2 * tokens * (4 * tower.hidden**2 + 2 * tower.hidden * tower.intermediate)
    attention = 2 * 2 * tokens**2 * tower.hidden
    patch_embedding = 2 * patches * 3 * model.patch_size_px**2 * tower.hidden
    return tower.layers * (layer + attention) + patch_embedding


def _projector(model: ModelFacts) -> int:
    """Forward pass, gradients of both weights, and of what lies between them."""
    width = model.language_model.hidden
    first, second = model.vision_tower.hidden * width, width * width
    return model.tokens_per_image * 2 * (2 * first + 3 * second)
