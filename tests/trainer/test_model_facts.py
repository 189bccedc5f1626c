"""Proves that a model's shape is read off its configuration as transformers builds it, and refused where it is none."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from llava_api.failures import Reason
from llava_api.model_facts import ModelFacts, TransformerShape
from llava_trainer.data.model_facts import read_model_facts
from llava_trainer.errors import StageError


def write_config(folder: Path, **changes: Any) -> Path:
    """The configuration of llava-1.5-7b, as its checkpoint on the hub has it."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    config = LlavaConfig(text_config=LlamaConfig(vocab_size=32064), vision_config=vision).to_dict()
    for path, value in changes.items():
        part, _, key = path.rpartition("__")
        (config[part] if part else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_shape_of_llava_7b(tmp_path: Path):
    facts = read_model_facts(write_config(tmp_path), source="hf://llava-hf/llava-1.5-7b-hf@abc")
    assert facts == ModelFacts(
        source="hf://llava-hf/llava-1.5-7b-hf@abc",
        layout="hub",
        language_model=TransformerShape(layers=32, hidden=4096, intermediate=11008, heads=32, key_value_heads=32),
        vocabulary=32064,
        vision_tower=TransformerShape(layers=24, hidden=1024, intermediate=4096, heads=16, key_value_heads=16),
        image_size_px=336,
        patch_size_px=14,
        tokens_per_image=576,
        feature_layer=(-2,),
        feature_strategy="default",
    )


def test_several_feature_layers_the_class_token_and_a_long_source(tmp_path: Path):
    folder = write_config(
        tmp_path, vision_feature_layer=[-2, -5], vision_feature_select_strategy="full", vision_config__image_size=224
    )
    facts = read_model_facts(folder, source="s3://" + "x" * 300 + "/end", layout="original")
    assert (facts.feature_layer, facts.feature_strategy, facts.tokens_per_image) == ((-2, -5), "full", 257)
    assert facts.layout == "original"
    assert len(facts.source) == 256
    assert facts.source.endswith("/end")


def test_a_shape_that_makes_no_sense_is_refused_by_name(tmp_path: Path):
    with pytest.raises(StageError, match="intermediate") as refused:
        read_model_facts(write_config(tmp_path, text_config__intermediate_size=0))
    assert refused.value.reason is Reason.INVALID_MODEL
