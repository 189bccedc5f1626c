"""What is known of a model once prepare has read its configuration: its shape, and how pictures enter it."""

from typing import Annotated, Literal

from pydantic import Field

from llava_api.base import Lenient

Size = Annotated[int, Field(ge=1, le=2**40)]
Short = Annotated[str, Field(max_length=256)]


class TransformerShape(Lenient):
    """Sizes of a transformer."""

    layers: Annotated[Size, Field(description="Number of layers.")]
    hidden: Annotated[Size, Field(description="Width of the hidden states.")]
    intermediate: Annotated[Size, Field(description="Width inside a layer's MLP.")]
    heads: Annotated[Size, Field(description="Heads of attention in a layer.")]
    key_value_heads: Annotated[Size, Field(description="Heads of keys and values.")]


class ModelFacts(Lenient):
    """The model that a run starts from."""

    source: Annotated[Short, Field(description="Where it came from, with the commit where there is one.")] = ""
    layout: Annotated[
        Literal["hub", "original", "assembled"],
        Field(description="hub: read as it is; original: converted from the original code's layout; assembled: "
                          "language model and vision tower with a fresh projector."),
    ] = "hub"  # fmt: skip
    language_model: Annotated[TransformerShape, Field(description="Language model.")]
    vocabulary: Annotated[Size, Field(description="Rows of the embedding and of the head.")]
    vision_tower: Annotated[TransformerShape, Field(description="Vision tower.")]
    image_size_px: Annotated[Size, Field(description="Side of the square that a picture is made to.")]
    patch_size_px: Annotated[Size, Field(description="Side of a patch.")]
    tokens_per_image: Annotated[Size, Field(description="Tokens that a picture becomes.")]
    feature_layer: Annotated[
        tuple[int, ...], Field(max_length=16, description="Hidden states of the tower that are taken, like -2.")
    ]
    feature_strategy: Annotated[
        Literal["default", "full"], Field(description="default drops the class token, full keeps it.")
    ]
