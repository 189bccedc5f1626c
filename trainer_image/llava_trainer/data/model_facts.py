"""What the operator has to know of a model before it gives it GPUs: its shape, read off its configuration.

Knows nothing of weights: whether they are there is ``model_files``' business.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from llava_api.failures import Reason
from llava_api.model_facts import ModelFacts, TransformerShape
from llava_trainer.data.model_config import load_config
from llava_trainer.data.processor import NUM_CLASS_TOKENS
from llava_trainer.errors import StageError

MAX_SOURCE = 256
"""Characters of a source's name that a termination message has room for."""


def read_model_facts(
    model_dir: Path, *, source: str = "", layout: Literal["hub", "original", "assembled"] = "hub"
) -> ModelFacts:
    """Read the shape of the model in ``model_dir``, which is in hub layout.

    Args:
        model_dir: folder with config.json.
        source: where the model came from, with the commit where there is one; a longer one loses its beginning.
        layout: how it was laid out there.

    Raises:
        StageError: InvalidModel, naming the key of config.json and its value.
    """
    config = load_config(model_dir)
    text, vision = config.text_config, config.vision_config
    num_patches = (vision.image_size // vision.patch_size) ** 2
    layers = config.vision_feature_layer
    strategy = config.vision_feature_select_strategy
    try:
        return ModelFacts(
            source=source[-MAX_SOURCE:],
            layout=layout,
            language_model=_shape_of(text, text.num_key_value_heads),
            vocabulary=text.vocab_size,
            vision_tower=_shape_of(vision, vision.num_attention_heads),
            image_size_px=vision.image_size,
            patch_size_px=vision.patch_size,
            tokens_per_image=num_patches + (0 if strategy == "default" else NUM_CLASS_TOKENS),
            feature_layer=(layers,) if isinstance(layers, int) else tuple(layers),
            feature_strategy=strategy,
        )
    except (ValidationError, TypeError, AttributeError) as error:
        path = model_dir / "config.json"
        raise StageError(Reason.INVALID_MODEL, f"{path} does not tell the model's shape: {error}") from error


def _shape_of(config: Any, key_value_heads: int | None) -> TransformerShape:
    return TransformerShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        key_value_heads=key_value_heads or config.num_attention_heads,
    )
