"""Datasets as people have them: images, and the same questions and answers in both export formats."""

import base64
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from tests.trainer.attempts import begin_first

Pairs = Sequence[tuple[str, str]]


def draw_image(path: Path, seed: int = 0, size: tuple[int, int] = (60, 40)) -> Path:
    """An image of lines that is different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    brush = ImageDraw.Draw(image)
    for _ in range(6):
        ends = [(rng.randrange(size[0]), rng.randrange(size[1])) for _ in range(2)]
        brush.line(ends, fill=tuple(rng.randrange(256) for _ in range(3)), width=3)
    image.save(path)
    return path


def conversation(image: str | None, pairs: Pairs, /, **changes: Any) -> dict[str, Any]:
    """An entry of a LLaVA export."""
    turns = []
    for index, (question, answer) in enumerate(pairs):
        marker = "<image>\n" if image and index == 0 else ""
        turns += [{"from": "human", "value": marker + question}, {"from": "gpt", "value": answer}]
    entry: dict[str, Any] = {"id": image or "text", "conversations": turns}
    if image:
        entry["image"] = image
    return entry | changes


def document(name: str | None, pairs: Pairs, /, **changes: Any) -> dict[str, Any]:
    """A document of a UBIAI export with relations."""
    spans, relations, text, word = [], [], "", 0
    for question, answer in pairs:
        starts = []
        for part, label in ((question, "QUESTION"), (answer, "ANSWER")):
            num_words = max(1, len(part.split()))
            spans.append({
                "text": part, "start": len(text), "end": len(text) + len(part), "token_start": word,
                "token_end": word + num_words - 1, "entityLabel": label,
            })  # fmt: skip
            starts.append(word)
            text += part + "\n"
            word += num_words
        relations.append({"head": starts[0], "child": starts[1], "relationLabel": "LINK"})
    entry: dict[str, Any] = {"document": text, "tokens": spans, "relations": relations}
    if name is not None:
        entry["documentName"] = name
    return entry | changes


def chat(entry: dict[str, Any], /, **changes: Any) -> dict[str, Any]:
    """A conversation (LLaVA's) with one image as OpenAI's fine-tuning has it."""
    messages: list[dict[str, Any]] = []
    for turn in entry["conversations"]:
        content: Any = turn["value"]
        if "<image>" in content:
            image = {"type": "image_url", "image_url": {"url": entry["image"]}}
            content = [image, {"type": "text", "text": content.replace("<image>", "").strip()}]
        messages.append({"role": "user" if turn["from"] == "human" else "assistant", "content": content})
    others = {name: value for name, value in entry.items() if name not in ("image", "conversations")}
    return {"messages": messages, **others, **changes}


def data_url(image: Path) -> str:
    """An image file as a data: URL."""
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def prepare_config(root: Path, model_dir: Path, *, format: str = "llava", **changes: Any) -> RunConfig:
    """Configuration of a prepare stage over ``root``/dataset (export.json, images/) into ``root``/volume."""
    fields: dict[str, Any] = {
        "run": {"namespace": "team-a", "name": "receipts", "uid": "0c6f", "stage": StageName.PREPARE, "attempt": 1},
        "volumeRoot": root / "volume",
        "modelDir": model_dir,
        "datasetDir": root / "dataset",
        "dataset": {
            "source": "pvc://receipts/", "format": format, "file": "export.json", "images": "images",
            "validation": {"fraction": 0.25},
        },
        "training": {"maxLength": 512},
        "workers": {},
        "merge": {},
        "evaluation": {},
    }  # fmt: skip
    merged = {name: part | changes.get(name, {}) if isinstance(part, dict) else part for name, part in fields.items()}
    merged |= {name: part for name, part in changes.items() if name not in fields}
    config = RunConfig.model_validate(merged)
    return begin_first(config)
