"""Floating-point operations of training, from a model's shape and what a step goes over. Pure arithmetic.

Counted as torch's FlopCounterMode counts them: matrix products only, two operations a multiply-add, attention without a
discount for what the causal mask hides. Divided by seconds and by ``peak_of`` a GPU, ``Flops.model`` gives the model
FLOPs utilisation (MFU) of PaLM (Chowdhery et al. 2022, appendix B), ``Flops.hardware`` the hardware FLOPs utilisation
(HFU). For MFU, positions are those of the samples, each by itself; for HFU all that were computed, filling included.
"""

import re
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass

from llava_api.memory import Method, count_lora, count_parameters
from llava_api.memory.parameters import CLASS_TOKENS, linear_widths, patches
from llava_api.model_facts import ModelFacts, TransformerShape
from llava_api.spec import LORA_TARGETS, LoraTarget
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

_ATTENDING: Set[LoraTarget] = frozenset({"q_proj", "k_proj", "v_proj"})


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
    """Those that are done beside them to save memory: layers a second time by gradient checkpointing, scores by fused
    attention, and gradients that nobody needs by either."""

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(model=self.model + other.model, recomputed=self.recomputed + other.recomputed)

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
    targets: Collection[LoraTarget] = LORA_TARGETS,
    learns_projector: bool = True,
    learns_tower: bool = False,
    gradient_checkpointing: bool = False,
    fused_attention: bool = True,
) -> Flops:
    """Operations of a forward and a backward pass over ``positions``.

    A frozen matrix has one product in the backward pass, one that learns has two, and a frozen one below which nothing
    learns has none. Gradients run through every layer down to projector or tower, where these learn. PyTorch may leave
    out a layer's very last product when it computes it again, which is less than a thousandth.

    Args:
        model: the model's shape.
        method: what learns of the language model; ``projector`` is phase 1.
        positions: what is gone over.
        rank: of the adapter, with lora and qlora.
        targets: linear layers that have an adapter, with lora and qlora.
        learns_projector: whether the projector learns; always in phase 1.
        learns_tower: whether the vision tower does, up to its features.
        gradient_checkpointing: whether layers are computed again in the backward pass.
        fused_attention: whether the scores are computed again in the backward pass, as flash kernels do.
    """
    adapted = frozenset(targets) if method in ("lora", "qlora") else frozenset()
    repeated = _Repeated(layers=gradient_checkpointing, scores=fused_attention)
    layers = _count_language_layers(
        model, positions, repeated, rank=rank, adapted=adapted, learns_weights=method == "full",
        learns_below=method == "full" or learns_projector or learns_tower,
    )  # fmt: skip
    if learns_tower:
        layers += _count_seen_layers(model, positions.images, repeated)
    head = positions.supervised * 2 * model.language_model.hidden * model.vocabulary * (3 if method == "full" else 2)
    images = positions.images * (
        _count_rest_of_tower(model, learns=learns_tower)
        + _count_projector(model, learns=learns_projector, learns_tower=learns_tower)
    )
    return layers + Flops(model=head + images, recomputed=0)


def peak_of(device_name: str) -> float | None:
    """Dense bf16 operations a second of a GPU, if it is in the table."""
    # As words: an RTX A1000 is no A100, a GB200 no B200.
    return next((peak for name, peak in DENSE_BF16_PEAK.items() if re.search(rf"\b{name}\b", device_name)), None)


@dataclass(frozen=True, kw_only=True)
class _Repeated:
    """What the backward pass computes again."""

    layers: bool
    scores: bool


def _count_language_layers(
    model: ModelFacts, positions: Positions, repeated: _Repeated, *, rank: int, adapted: Set[LoraTarget],
    learns_weights: bool, learns_below: bool,
) -> Flops:  # fmt: skip
    language = model.language_model
    linear = positions.tokens * 2 * language.layers * count_parameters(model).layer
    lora = positions.tokens * 2 * count_lora(language, rank, adapted)
    # One product of attention: scores, or values weighted by them. The backward pass has two of each.
    product = 2 * positions.pairs * language.hidden
    forward = linear + lora + language.layers * 2 * product
    backward = (2 if learns_weights else 1) * linear + 2 * lora + language.layers * 4 * product
    recomputed = (forward if repeated.layers else 0) + (language.layers * product if repeated.scores else 0)
    if learns_below:
        return Flops(model=forward + backward, recomputed=recomputed)
    needed = _count_needed_products(adapted)
    spared_linear = positions.tokens * 2 * _count_untouched(language, rank, adapted)
    spared_products = (4 - needed) * product
    if repeated.layers:
        # To compute layers again, transformers (5.23) has gradients run down to the embeddings, whoever needs them.
        recomputed += spared_linear + spared_products
    elif repeated.scores:
        # A kernel computes the gradients of queries, keys and values, or none of them.
        recomputed += spared_products if needed else -product
    return Flops(model=forward + backward - spared_linear - spared_products, recomputed=recomputed)


def _count_untouched(language: TransformerShape, rank: int, adapted: Set[LoraTarget]) -> int:
    """Elements of the first layer's matrices whose inputs need no gradient where nothing learns below the layer.

    Nothing that learns has touched these inputs. Of an adapter it is the first matrix alone.
    """
    attending = bool(adapted & _ATTENDING)
    attended = attending or "o_proj" in adapted
    touched = {"o_proj": attending, "gate_proj": attended, "up_proj": attended,
               "down_proj": attended or bool(adapted & {"gate_proj", "up_proj"})}  # fmt: skip
    return sum(
        inputs * outputs + (rank * inputs if name in adapted else 0)
        for name, (inputs, outputs) in linear_widths(language).items()
        if not touched.get(name, False)
    )


def _count_needed_products(adapted: Set[LoraTarget]) -> int:
    """Products of attention in the first layer's backward pass, where nothing learns below it.

    For gradients of queries, of keys, of values, and of the weights between them.
    """
    return len(adapted & _ATTENDING) + bool(adapted & {"q_proj", "k_proj"})


def _count_seen_layers(model: ModelFacts, images: int, repeated: _Repeated) -> Flops:
    """The tower's layers up to its features, where they learn."""
    layers = images * model.seen_layers
    forward = layers * _count_tower_layer(model)
    scores = layers * _count_tower_product(model)
    recomputed = (forward if repeated.layers else 0) + (scores if repeated.scores else 0)
    return Flops(model=3 * forward, recomputed=recomputed)


def _count_rest_of_tower(model: ModelFacts, *, learns: bool) -> int:
    """For one image, what else runs of the tower: layers without a backward pass, the last for nothing, and patches."""
    layers = model.vision_tower.layers - (model.seen_layers if learns else 0)
    embedding = 2 * patches(model) * 3 * model.patch_size_px**2 * model.vision_tower.hidden
    return layers * _count_tower_layer(model) + (2 if learns else 1) * embedding


def _count_tower_layer(model: ModelFacts) -> int:
    """Forward pass of one image."""
    tower = model.vision_tower
    linear = 2 * (patches(model) + CLASS_TOKENS) * (4 * tower.hidden**2 + 2 * tower.hidden * tower.intermediate)
    return linear + 2 * _count_tower_product(model)


def _count_tower_product(model: ModelFacts) -> int:
    return 2 * (patches(model) + CLASS_TOKENS) ** 2 * model.vision_tower.hidden


def _count_projector(model: ModelFacts, *, learns: bool, learns_tower: bool) -> int:
    """For one image: forward pass, gradients of both weights, of what lies between them, and of features."""
    width = model.language_model.hidden
    first, second = model.vision_tower.hidden * len(model.feature_layer) * width, width * width
    products = (1 + learns + learns_tower) * first + (1 + learns + (learns or learns_tower)) * second
    return model.tokens_per_image * 2 * products
