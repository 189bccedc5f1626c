"""Shapes of models that the memory plan is proven on."""

from llava_api.model_facts import ModelFacts, TransformerShape


def make_shape(
    layers: int,
    *,
    hidden: int = 4096,
    intermediate: int = 11008,
    heads: int = 32,
    key_value_heads: int = 32,
    vocabulary: int = 32064,
    tower_layers: int = 4,
    tower_hidden: int = 1024,
    image_px: int = 336,
) -> ModelFacts:
    """LLaVA-1.5-7B's widths with fewer layers, where nothing else is said: a trace takes as long as a model is deep."""
    tower = TransformerShape(
        layers=tower_layers, hidden=tower_hidden, intermediate=4 * tower_hidden, heads=tower_hidden // 64,
        key_value_heads=tower_hidden // 64,
    )  # fmt: skip
    return ModelFacts(
        language_model=TransformerShape(
            layers=layers, hidden=hidden, intermediate=intermediate, heads=heads, key_value_heads=key_value_heads
        ),
        vocabulary=vocabulary,
        vision_tower=tower,
        image_size_px=image_px,
        patch_size_px=14,
        tokens_per_image=(image_px // 14) ** 2,
        feature_layer=(-2,),
        feature_strategy="default",
    )


def make_13b(layers: int, *, tower_layers: int = 4) -> ModelFacts:
    """LLaVA-1.5-13B's widths."""
    return make_shape(layers, tower_layers=tower_layers, hidden=5120, intermediate=13824, heads=40, key_value_heads=40)


def make_small() -> ModelFacts:
    """A small model with a small tower."""
    return make_shape(
        4, hidden=512, intermediate=1408, heads=8, key_value_heads=8, vocabulary=8192, tower_hidden=384, image_px=224
    )  # fmt: skip
