"""A LLaVA of 27 million parameters with random weights: small enough for a CPU, and proportioned as the real one."""

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny.base import write_hub_layout
from tests.tiny.tokenizer import build_tokenizer

IMAGE_PX = 112
PATCH_PX = 14
IMAGE_TOKENS = (IMAGE_PX // PATCH_PX) ** 2
"""A ninth of LLaVA v1.5's 576."""
VOCABULARY = 2048
"""The head has a twentieth of the language model's work; LLaVA's 32,064 at this width would make it a half."""
LORA_RANK = 16
"""A 32nd of the width, as 128 of LLaVA's 4,096."""


def write_model(folder: Path, corpus: list[str], seed: int = 0) -> None:
    """Write the model with a tokenizer trained on ``corpus`` into ``folder``, in the hub's layout."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(corpus)
    size = {"height": IMAGE_PX, "width": IMAGE_PX}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": IMAGE_PX}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=7, num_attention_heads=4, image_size=IMAGE_PX,
        patch_size=PATCH_PX, projection_dim=256,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    write_hub_layout(LlavaForConditionalGeneration(config).eval(), processor, folder)
