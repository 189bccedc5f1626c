"""Build a tiny LLaVA, pre-train it on colours, corners and echoes, and write it in hub layout.

About 0.8 M parameters and half a minute on one core. As with the real one, the vision tower learns to see first and
is frozen then; projector and language model learn to talk about what it sees. The folder looks like
``llava-hf/llava-1.5-7b-hf``: the older weight names, a processor that cuts the centre out, and a chat template
without the system text.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny.images import COLOURS, CORNERS, draw_tray
from tests.tiny.tasks import SYSTEM, Exchange, Scene, corpus, draw_exchange, scenes
from tests.tiny.tokenizer import build_tokenizer

IMAGE_PX = 56
PATCH_PX = 14
IMAGE_TOKENS = (IMAGE_PX // PATCH_PX) ** 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How long and how hard to pre-train."""

    tower_steps: int = 100
    tower_learning_rate: float = 4e-3
    steps: int = 240
    batch: int = 24
    learning_rate: float = 2e-3
    images_per_scene: int = 8


def make_base(folder: Path, seed: int = 0, pretraining: Pretraining | None = None) -> None:
    """Write a pre-trained tiny LLaVA into ``folder``; the same seed and number of threads give the same bytes.

    Args:
        folder: made if it is missing.
        seed: seed of weights, images and order.
        pretraining: None for the default.
    """
    plan = pretraining or Pretraining()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    processor = build_processor(build_tokenizer(corpus(rng)))
    model = build_model(processor.tokenizer)
    images = _Images(processor, rng, plan.images_per_scene)
    _pretrain_tower(model, images, rng, plan)
    _pretrain_language(model, processor.tokenizer, images, rng, plan)
    write_hub_layout(model.eval(), processor, folder)


def make_untrained_base(folder: Path, seed: int = 0) -> None:
    """Write the same model with random weights into ``folder``, in a second: for tests that need no skill."""
    torch.manual_seed(seed)
    processor = build_processor(build_tokenizer(corpus(random.Random(seed))))
    write_hub_layout(build_model(processor.tokenizer).eval(), processor, folder)


def build_processor(tokenizer: LlamaTokenizer) -> LlavaProcessor:
    """A processor set up like the hub's: centre crop, one class token that is not an image token."""
    size = {"height": IMAGE_PX, "width": IMAGE_PX}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": IMAGE_PX}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: LlamaTokenizer) -> LlavaForConditionalGeneration:
    """A randomly initialised LLaVA in fp32: Llama 128 x 3 layers, CLIP 64 x 3 layers."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=PATCH_PX,
        projection_dim=64,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlavaForConditionalGeneration(config)
    _widen(model)
    return model


@torch.no_grad()
def _widen(model: LlavaForConditionalGeneration) -> None:
    """Draw weights at a scale that suits so narrow a model; at 0.02 it takes ten times as long to look at an image."""
    language = model.model.language_model
    for matrix in (parameter for parameter in language.layers.parameters() if parameter.ndim == 2):
        torch.nn.init.normal_(matrix, std=0.08)
    torch.nn.init.normal_(language.embed_tokens.weight, std=0.5)
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.3)
    for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        torch.nn.init.normal_(layer.weight, std=0.15)


def write_hub_layout(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write ``model`` under the weight names that the hub's checkpoints have, with everything that belongs to it."""
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    config = model.config.to_dict()
    config.update(architectures=["LlavaForConditionalGeneration"], dtype="float32")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    weights = {_hub_name(name): tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _hub_name(name: str) -> str:
    for ours, hub in (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(ours):
            return hub + name.removeprefix(ours)
    raise ValueError(f"no hub name for {name}")


class _Images:
    """A few processed images of every scene, drawn once."""

    def __init__(self, processor: LlavaProcessor, rng: random.Random, per_scene: int) -> None:
        self.scenes = [scene for scene in scenes() for _ in range(per_scene)]
        drawn = [draw_tray(rng, *scene) for scene in self.scenes]
        self.pixels: torch.Tensor = processor.image_processor(drawn, return_tensors="pt").pixel_values
        self._per_scene = per_scene
        self._first = {scene: index * per_scene for index, scene in enumerate(scenes())}

    def draw(self, rng: random.Random, scene: Scene) -> torch.Tensor:
        """Pixels of one image of ``scene``: (3, IMAGE_PX, IMAGE_PX)."""
        return self.pixels[self._first[scene] + rng.randrange(self._per_scene)]


def _pretrain_tower(
    model: LlavaForConditionalGeneration, images: _Images, rng: random.Random, plan: Pretraining
) -> None:
    """Teach the tower to tell colour and corner from every patch, by a linear probe that is thrown away."""
    colours, corners = list(COLOURS), list(CORNERS)
    targets = torch.tensor([[colours.index(colour), corners.index(corner)] for colour, corner in images.scenes])
    tower = model.model.vision_tower
    probe = torch.nn.Linear(tower.config.hidden_size, len(colours) + len(corners))
    optimizer, schedule = _optimizer(
        [*tower.parameters(), *probe.parameters()], plan.tower_learning_rate, plan.tower_steps
    )
    for _ in range(plan.tower_steps):
        chosen = torch.tensor(rng.sample(range(len(targets)), 2 * plan.batch))
        states = tower(images.pixels[chosen], output_hidden_states=True).hidden_states[-2][:, 1:]
        guesses = probe(states).transpose(1, 2)
        expected = targets[chosen].unsqueeze(-1).expand(-1, -1, states.shape[1])
        loss = cross_entropy(guesses[:, : len(colours)], expected[:, 0])
        loss = loss + cross_entropy(guesses[:, len(colours) :], expected[:, 1])
        _step(loss, optimizer, schedule)
    tower.requires_grad_(False)


def _pretrain_language(
    model: LlavaForConditionalGeneration,
    tokenizer: LlamaTokenizer,
    images: _Images,
    rng: random.Random,
    plan: Pretraining,
) -> None:
    """Teach projector and language model to name colours and corners, and to write any word."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = _optimizer(learning, plan.learning_rate, plan.steps)
    for _ in range(plan.steps):
        batch = _collate([draw_exchange(rng) for _ in range(plan.batch)], tokenizer, images, rng)
        loss = model(**batch, use_cache=False).loss
        _step(loss, optimizer, schedule)


def _optimizer(
    parameters: list[torch.nn.Parameter], peak: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.95), weight_decay=0.0)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.1)


def _step(loss: torch.Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(
        [parameter for group in optimizer.param_groups for parameter in group["params"]], 1.0
    )
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()


def _collate(
    exchanges: list[Exchange], tokenizer: LlamaTokenizer, images: _Images, rng: random.Random
) -> dict[str, torch.Tensor]:
    rows = [_encode(exchange, tokenizer) for exchange in exchanges]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), _IGNORED)
    for row, (sample_ids, num_prompt) in enumerate(rows):
        ids[row, : len(sample_ids)] = torch.tensor(sample_ids)
        labels[row, num_prompt : len(sample_ids)] = torch.tensor(sample_ids[num_prompt:])
    batch = {"input_ids": ids, "labels": labels, "attention_mask": (ids != tokenizer.pad_token_id).long()}
    scenes_shown = [exchange.scene for exchange in exchanges if exchange.scene]
    if scenes_shown:
        batch["pixel_values"] = torch.stack([images.draw(rng, scene) for scene in scenes_shown])
    return batch


def _encode(exchange: Exchange, tokenizer: LlamaTokenizer) -> tuple[list[int], int]:
    """Token ids of an exchange in LLaVA's v1 layout, and how many of them belong to the prompt."""
    image = "<image>" * IMAGE_TOKENS + "\n" if exchange.scene else ""
    prompt = f"{SYSTEM} USER: {image}{exchange.question} ASSISTANT:"
    encoded = tokenizer(f"{prompt} {exchange.answer}</s>", return_offsets_mapping=True)
    num_prompt = sum(1 for start, _ in encoded["offset_mapping"] if start < len(prompt))
    return encoded["input_ids"], num_prompt
