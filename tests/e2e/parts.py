"""A tiny base taken apart: what phase 1 starts from, and captions for it to learn from.

Language model and tower are the pre-trained ones; only the projector between them is missing, as with Vicuna and CLIP.
"""

import json
import random
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny.export import EXPORT_FILE, IMAGES_FOLDER
from tests.tiny.images import draw_tray
from tests.tiny.tasks import scenes


def take_apart(base: Path, language_model: Path, vision_tower: Path) -> None:
    """Write the language model and the vision tower of ``base`` as checkpoints of their own, as the hub has them.

    Args:
        base: a tiny LLaVA in hub layout.
        language_model: folder for the language model and its tokenizer.
        vision_tower: folder for the tower and its image processor.
    """
    whole = LlavaForConditionalGeneration.from_pretrained(base)
    alone = LlamaForCausalLM(whole.config.text_config)
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    alone.save_pretrained(language_model)
    AutoTokenizer.from_pretrained(base).save_pretrained(language_model)
    whole.model.vision_tower.save_pretrained(vision_tower)
    CLIPImageProcessorPil.from_pretrained(base).save_pretrained(vision_tower)


def make_captions(folder: Path, *, images_per_scene: int = 10, seed: int = 1) -> int:
    """Write pictures of trays with a caption each, like ``red top left``; returns how many."""
    rng = random.Random(seed)
    images = folder / IMAGES_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    chosen = scenes() * images_per_scene
    rng.shuffle(chosen)
    entries: list[dict[str, Any]] = []
    for index, scene in enumerate(chosen):
        name = f"caption-{index:04d}.png"
        draw_tray(rng, *scene).save(images / name)
        turns = [
            {"from": "human", "value": "Describe the picture.\n<image>"},
            {"from": "gpt", "value": " ".join(scene)},
        ]
        entries.append({"id": name, "image": name, "conversations": turns})
    (folder / EXPORT_FILE).write_text(json.dumps(entries))
    return len(entries)
