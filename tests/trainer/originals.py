"""A tiny LLaVA as the original code builds and saves it: Llama, CLIP and a projector by themselves.

Nothing here uses transformers' own LLaVA or the trainer: it is what the converted model is held against.
"""

import io
import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tests.tiny.tasks import SYSTEM

VOCABULARY = 640
IMAGE_PX, PATCH_PX = 56, 14
TEXT_WIDTH, VISION_WIDTH = 48, 64
_WORDS = ("what", "is", "the", "total", "date", "of", "this", "receipt", "how", "much", "tax", "which", "shop", "sold")


@cache
def sentencepiece_model() -> bytes:
    """A SentencePiece BPE with byte fallback trained on the spot, with Llama's settings."""
    rng = random.Random(0)
    texts = [SYSTEM, "What is it? ASSISTANT: nine", "x  y   z    w", "  two leading"] * 30
    # As in Llama's vocabulary, USER is a piece and ▁USER is two: LLaVA's counting of rounds relies on it.
    texts += [f"{letter}USER: {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] * 5
    texts += [" ".join(rng.choice(_WORDS) for _ in range(10)) for _ in range(400)]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, vocab_size=VOCABULARY, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, add_dummy_prefix=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        minloglevel=2, hard_vocab_limit=False, num_threads=1,
    )  # fmt: skip
    return written.getvalue()


def vocabulary_size() -> int:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).get_piece_size()


@dataclass(frozen=True, kw_only=True)
class Original:
    """The three parts, in fp32."""

    llama: LlamaForCausalLM
    clip: CLIPVisionModel
    projector: nn.Sequential

    @torch.no_grad()
    def logits(
        self, chunks: list[list[int]], pixels: torch.Tensor | None, layer: int = -2, cut: int = 1
    ) -> torch.Tensor:
        """Logits of chunks of token ids with an image's features between one and the next.

        Args:
            chunks: ids around the images.
            pixels: (images, 3, height, width), one fewer than chunks.
            layer: hidden state of the tower that is taken.
            cut: tokens of it that are dropped at the beginning.
        """
        embed = self.llama.get_input_embeddings()
        parts = [embed(torch.tensor(chunks[0]))]
        features = []
        if pixels is not None:
            states = self.clip(pixels, output_hidden_states=True).hidden_states[layer][:, cut:]
            features = list(self.projector(states))
        for seen, chunk in zip(features, chunks[1:], strict=True):
            parts += [seen, embed(torch.tensor(chunk, dtype=torch.int64))]
        return self.llama(inputs_embeds=torch.cat(parts)[None]).logits[0]

    def language_weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.llama.state_dict().items()}

    def projector_weights(self) -> dict[str, torch.Tensor]:
        return {f"model.mm_projector.{name}": tensor.clone() for name, tensor in self.projector.state_dict().items()}

    def tower_weights(self) -> dict[str, torch.Tensor]:
        """Under CLIP's own names, as the hub's CLIP checkpoints have them."""
        return {
            f"vision_model.{name.removeprefix('vision_model.')}": t.clone()
            for name, t in self.clip.state_dict().items()
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """All under the original code's names."""
        tower = {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in self.tower_weights().items()}
        return self.language_weights() | self.projector_weights() | tower


def build(seed: int = 0, rows: int | None = None, image_px: int = IMAGE_PX) -> Original:
    torch.manual_seed(seed)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows or vocabulary_size(), hidden_size=TEXT_WIDTH, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=VISION_WIDTH, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1,
            image_size=image_px, patch_size=PATCH_PX,
        )
    )  # fmt: skip
    projector = nn.Sequential(nn.Linear(VISION_WIDTH, TEXT_WIDTH), nn.GELU(), nn.Linear(TEXT_WIDTH, TEXT_WIDTH))
    with torch.no_grad():
        for parameter in (*llama.parameters(), *clip.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return Original(llama=llama.eval(), clip=clip.eval(), projector=projector.eval())


def llama_settings(original: Original) -> dict[str, Any]:
    """config.json of the language model as transformers 4 wrote it."""
    config = original.llama.config
    keys = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id",
    )  # fmt: skip
    return {key: getattr(config, key) for key in keys} | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 10000.0, "torch_dtype": "float32",
        "tie_word_embeddings": False,
    }  # fmt: skip


def llava_settings(original: Original, **changes: Any) -> dict[str, Any]:
    """config.json of the original code's LLaVA."""
    return llama_settings(original) | {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "mm_hidden_size": VISION_WIDTH,
        "mm_projector_type": "mlp2x_gelu", "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": "some/tiny-clip",
        "image_aspect_ratio": "pad", "use_mm_proj": True, "tune_mm_mlp_adapter": False,
    } | changes  # fmt: skip


def write_settings(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def write_weights(folder: Path, weights: dict[str, torch.Tensor], *, pickled: bool = False, shards: int = 1) -> Path:
    """As safetensors, or as the pickles of earlier days, in one file or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, ending = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    names = list(weights)
    if shards == 1:
        files = {f"{stem}.{ending}": names}
    else:
        files = {f"{stem}-{n + 1:05d}-of-{shards:05d}.{ending}": names[n::shards] for n in range(shards)}
        places = {name: file for file, held in files.items() for name in held}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for file, held in files.items():
        chosen = {name: weights[name].contiguous() for name in held}
        torch.save(chosen, folder / file) if pickled else save_file(chosen, folder / file, metadata={"format": "pt"})
    return folder


def write_tokenizer(folder: Path, **settings: Any) -> Path:
    """tokenizer.model and tokenizer_config.json, as original checkpoints carry them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    given = {"tokenizer_class": "LlamaTokenizer", "pad_token": "<unk>", "model_max_length": 2048} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(given))
    return folder


def write_tower(folder: Path, original: Original, **changes: Any) -> Path:
    """CLIP with both of its sides, as the hub has it."""
    config = original.clip.config
    vision = {
        "model_type": "clip_vision_model", "hidden_size": config.hidden_size, "image_size": config.image_size,
        "intermediate_size": config.intermediate_size, "num_attention_heads": 1, "patch_size": config.patch_size,
        "num_hidden_layers": config.num_hidden_layers,
    }  # fmt: skip
    write_settings(folder, {"model_type": "clip", "vision_config": vision | changes, "text_config": {}})
    size = config.image_size
    images = {"crop_size": size, "size": size, "resample": 3, "image_mean": [0.48145466, 0.4578275, 0.40821073]}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    others = {"logit_scale": torch.tensor(4.6), "text_model.final_layer_norm.weight": torch.ones(3)}
    return write_weights(folder, original.tower_weights() | others, pickled=True)


def write_language_model(folder: Path, original: Original, **settings: Any) -> Path:
    """Vicuna's layout: a Llama by itself."""
    write_settings(folder, llama_settings(original))
    write_tokenizer(folder, **settings)
    return write_weights(folder, original.language_weights(), pickled=True, shards=2)
