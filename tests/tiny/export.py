"""Write images of trays and an export of question-answer pairs about their codes.

A tray's code follows from colour and corner of its block. Each of the 32 pairs of question and answer stands on many
images, so whatever part of the images is held out, its pairs have been seen in training on other images. With
``shuffled`` the codes are dealt out at random, so that an image says nothing about its code.
"""

import json
import random
import re
from pathlib import Path
from typing import Any, Literal

from tests.tiny.images import draw_tray
from tests.tiny.tasks import CODE_QUESTION, scenes, tray_code

ExportFormat = Literal["ubiai", "llava"]
EXPORT_FILE = "export.json"
IMAGES_FOLDER = "images"


def make_export(
    folder: Path,
    *,
    format: ExportFormat = "ubiai",
    seed: int = 0,
    images_per_scene: int = 10,
    shuffled: bool = False,
) -> int:
    """Write ``folder``/export.json and ``folder``/images/; returns the number of images (32 x images_per_scene).

    Args:
        folder: made if it is missing.
        format: ``ubiai`` (relations between QUESTION and ANSWER spans) or ``llava`` (conversations).
        seed: seed of images, order and shuffling.
        images_per_scene: images of each pair of colour and corner, one question each.
        shuffled: deal the answers out at random: the control experiment.
    """
    rng = random.Random(seed)
    images = folder / IMAGES_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    chosen = scenes() * images_per_scene
    rng.shuffle(chosen)
    codes = [tray_code(scene) for scene in chosen]
    if shuffled:
        rng.shuffle(codes)
    names = [f"tray-{index:04d}.png" for index in range(len(chosen))]
    for name, scene in zip(names, chosen, strict=True):
        draw_tray(rng, *scene).save(images / name)
    build = _ubiai_document if format == "ubiai" else _llava_sample
    entries = [build(name, CODE_QUESTION, code) for name, code in zip(names, codes, strict=True)]
    (folder / EXPORT_FILE).write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(names)


def _llava_sample(name: str, question: str, answer: str) -> dict[str, Any]:
    return {
        "id": name.removesuffix(".png"),
        "image": name,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }


def _ubiai_document(name: str, question: str, answer: str) -> dict[str, Any]:
    document = f"Question: {question}\nAnswer: {answer}\n"
    spans = [_span(document, question, "QUESTION"), _span(document, answer, "ANSWER")]
    link = {"head": spans[0]["token_start"], "child": spans[1]["token_start"], "relationLabel": "LINK"}
    return {"documentName": name, "document": document, "tokens": spans, "relations": [link]}


def _span(document: str, text: str, label: str) -> dict[str, Any]:
    """A labelled span: character offsets (end exclusive) and word indexes (last one inclusive)."""
    start = document.index(text)
    end = start + len(text)
    words = [match.start() for match in re.finditer(r"\w+|[^\w\s]", document)]
    inside = [index for index, word in enumerate(words) if start <= word < end]
    return {
        "text": text, "start": start, "end": end, "token_start": inside[0], "token_end": inside[-1],
        "entityLabel": label,
    }  # fmt: skip
