"""Tiny random LLaVAs on disk, in each of the three layouts, and PEFT adapters for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

Layout = Literal["fresh", "hub", "model"]
LAYOUTS: tuple[Layout, ...] = ("fresh", "hub", "model")
TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"


def build_llava(
    seed: int = 0, *, hidden: int = 32, intermediate: int = 48, layers: int = 2
) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights: language model 32 wide, 2 layers, grouped keys; tower 16 wide; 4 image tokens."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=16,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=5, image_seq_length=4, tie_word_embeddings=False
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Initial weights are small and biases zero; a mistake in any tensor should show.
            parameter.normal_(std=0.2)
    return model


def save_base(
    model: LlavaForConditionalGeneration,
    folder: Path,
    *,
    layout: Layout = "hub",
    dtype: torch.dtype = torch.float32,
    num_shards: int = 1,
) -> None:
    """Write a checkpoint with its weights named in ``layout``."""
    folder.mkdir(parents=True)
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": str(dtype).split(".")[1]}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    model.generation_config.save_pretrained(folder)
    weights = {rename(name, layout): tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_weights(weights, folder, num_shards=num_shards)


def save_weights(weights: dict[str, torch.Tensor], folder: Path, *, num_shards: int = 1) -> None:
    """Write tensors as one file, or as shards with an index."""
    if num_shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    weight_map = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[number::num_shards]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def rename(name: str, layout: Layout) -> str:
    """Name of a tensor of transformers 5 in another layout."""
    if layout == "model":
        return name
    old = name.replace("model.language_model.", "language_model.model.").replace("lm_head.", "language_model.lm_head.")
    old = old.removeprefix("model.")
    return old.replace("vision_tower.", "vision_tower.vision_model.") if layout == "hub" else old


def make_adapter(
    model: LlavaForConditionalGeneration,
    folder: Path,
    *,
    rank: int = 4,
    alpha: int = 12,
    seed: int = 1,
    rs_lora: bool = False,
) -> PeftModel:
    """Wrap ``model`` in LoRA with random matrices and a random projector, and save the adapter as PEFT does."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, use_rslora=rs_lora, target_modules=TARGETS, modules_to_save=["multi_modal_projector"]
    )
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
    tuned.save_pretrained(folder)
    return tuned.eval()


def edit_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Load a safetensors file, let ``change`` work on its dict of tensors, and write it again."""
    weights = load_file(file)
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file, metadata={"format": "pt"})
