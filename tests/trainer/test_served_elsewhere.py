"""What is exported serves as it was trained: in a fresh process, by plain Auto classes, without any of our code.

A merged model, and converted checkpoints of both ``legacy`` kinds; both aspect ratios, with one image, several and
none, in one turn and later ones. Ids and pixels must equal those of training exactly.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_api.run_config import RunConfig
from llava_trainer.data.encode import encode, encode_prompt
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import Processor, load_processor, save_processor
from llava_trainer.data.samples import Sample
from llava_trainer.importing import ModelParts, import_model
from llava_trainer.model.loading import load_model
from llava_trainer.stages import merge
from tests.trainer.originals import build, llava_settings, write_settings, write_tokenizer, write_weights
from tests.trainer.runs import Recorder, make_run
from tests.trainer.test_template import make_sample

SAMPLES = (
    make_sample("What is the total?", "9.00"),
    make_sample("What is the total?", "9.00", "And the date, naïve one?", "25/12/2018"),
    make_sample("Hello.", "Hi.", "What is this?", "A cat.", image_turns=(2,)),
    make_sample("Which is older?", "The first.", "And of these?", "漢字 🙂", image_turns=(0, 0, 2)),
    make_sample("Hello.", "Hi.", "USER: what?", "ASSISTANT: that", image_turns=()),
    make_sample("two\nlines", "a  b", image_turns=(0, 0)),
)
SIZES = ((90, 31), (40, 77), (56, 56))

SERVER = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, conversations, out = sys.argv[1:]
for folder, out in zip(folder.split(","), out.split(",")):
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    results = {}
    for number, messages in enumerate(json.load(open(conversations))):
        for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
            part["image"] = Image.open(part.pop("stored"))
            part["image"].load()
        asked = messages[-1]["role"] == "user"
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=asked, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            results[f"logits{number}"] = model(**inputs).logits[0, -1].numpy()
        results[f"ids{number}"] = inputs["input_ids"][0].numpy()
        if "pixel_values" in inputs:
            results[f"pixels{number}"] = inputs["pixel_values"].numpy()
    np.savez(out, **results)
assert not [name for name in sys.modules if name.startswith(("llava_trainer", "llava_api", "tests"))]
"""


def as_messages(sample: Sample, num_turns: int, images: list[Path]) -> list[dict]:
    messages = []
    for index, turn in enumerate(sample.turns[:num_turns]):
        shown = [path for path, at in zip(images, sample.image_turns, strict=True) if at == index]
        content = [*({"type": "image", "stored": str(path)} for path in shown), {"type": "text", "text": turn.text}]
        messages.append({"role": turn.role, "content": content})
    return messages


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def images(root: Path) -> list[Path]:
    paths = []
    for number, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(root / f"{number}.png")
        Image.fromarray(noise).save(paths[-1])
    return paths


def merged(root: Path) -> tuple[Path, Path, Processor]:
    """What the merge stage leaves."""
    (root / "run").mkdir()
    config: RunConfig = make_run(root / "run")
    merge.run(config, Recorder(config))
    return config.volume.merged_dir, config.model_dir, load_processor(config.model_dir, "pad")


def converted(root: Path, aspect_ratio: str, **tokenizer: object) -> tuple[Path, Path, Processor]:
    """A converted checkpoint of the original code, exported for an aspect ratio as merging exports it."""
    folder = root / "-".join(map(str, (aspect_ratio, *tokenizer.values())))
    original = build()
    strategy = "cls_patch" if aspect_ratio == "square" else "patch"
    source = write_settings(folder / "original", llava_settings(original, mm_vision_select_feature=strategy))
    write_weights(write_tokenizer(source, **tokenizer), original.weights())
    hub = import_model(ModelParts(source=source), folder / "hub").model_dir
    processor = load_processor(hub, aspect_ratio)  # type: ignore[arg-type]
    (folder / "merged").mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(hub / name, folder / "merged")
    save_processor(processor, folder / "merged")
    return folder / "merged", hub, processor


@pytest.fixture(scope="module")
def served(root: Path, images: list[Path]) -> dict[str, tuple[dict[str, np.ndarray], Path, Processor]]:
    """What a fresh process makes of each model: ids, pixels, the last position's logits."""
    made = {
        "merged": merged(root),
        "legacy, padded": converted(root, "pad", legacy=True),
        "not legacy, padded": converted(root, "pad", legacy=False),
        "not legacy, cut, whole tower": converted(root, "square", legacy=False),
    }
    (root / "conversations.json").write_text(
        json.dumps([
            as_messages(sample, num_turns, images[: len(sample.images)])
            for sample, num_turns in conversations()
        ])
    )  # fmt: skip
    outputs = [root / f"{number}.npz" for number in range(len(made))]
    folders = ",".join(str(folder) for folder, _, _ in made.values())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SERVER, folders, str(root / "conversations.json"),
         ",".join(map(str, outputs))],
        check=True, cwd=root, env=environment, timeout=300,
    )  # fmt: skip
    return {
        name: (dict(np.load(output)), folder, processor)
        for (name, (folder, _, processor)), output in zip(made.items(), outputs, strict=True)
    }


def conversations() -> list[tuple[Sample, int]]:
    """Samples with how many of their turns are told: up to each question, and to the end."""
    asked = [(_without_later_images(sample, 2 * pair + 1), 2 * pair + 1)
             for sample in SAMPLES for pair in range(sample.num_pairs)]  # fmt: skip
    return [*asked, *((sample, len(sample.turns)) for sample in SAMPLES)]


def _without_later_images(sample: Sample, num_turns: int) -> Sample:
    count = sum(index < num_turns for index in sample.image_turns)
    return replace(sample, images=sample.images[:count], image_turns=sample.image_turns[:count])


MODELS = ("merged", "legacy, padded", "not legacy, padded", "not legacy, cut, whole tower")


@pytest.mark.parametrize("model", MODELS)
def test_ids_and_pixels_are_those_of_training(
    model: str, served: dict[str, tuple[dict[str, np.ndarray], Path, Processor]], images: list[Path]
):
    found, _, processor = served[model]
    compared = 0
    for number, (sample, num_turns) in enumerate(conversations()):
        if num_turns == len(sample.turns):
            expected = list(encode(sample, processor, 10_000).input_ids)
        else:
            expected = encode_prompt(sample.turns[:num_turns], sample.image_turns, processor)
        assert found[f"ids{number}"].tolist() == expected
        shown = [pixel_values(open_image(path), processor) for path in images[: len(sample.images)]]
        assert (f"pixels{number}" in found) == bool(shown)
        if shown:
            np.testing.assert_array_equal(found[f"pixels{number}"], np.stack(shown), strict=True)
        compared += 1
    assert compared == 16


@pytest.mark.parametrize("model", MODELS[:2])
def test_the_model_answers_there_as_it_does_here(
    model: str, served: dict[str, tuple[dict[str, np.ndarray], Path, Processor]]
):
    found, folder, _ = served[model]
    loaded = load_model(folder, torch.float32, "cpu")
    for number in range(0, len(conversations()), 3):
        pixels = found.get(f"pixels{number}")
        with torch.no_grad():
            logits = loaded(
                input_ids=torch.from_numpy(found[f"ids{number}"])[None],
                pixel_values=None if pixels is None else torch.from_numpy(pixels),
            ).logits[0, -1]
        np.testing.assert_allclose(found[f"logits{number}"], logits.numpy(), rtol=0, atol=1e-5)


def test_every_export_names_the_settings_that_make_it_so(
    served: dict[str, tuple[dict[str, np.ndarray], Path, Processor]],
):
    for _, folder, processor in served.values():
        told = json.loads((folder / "processor_config.json").read_text())
        assert told["num_additional_image_tokens"] == 1
        assert told["image_processor"]["do_pad"] is (processor.aspect_ratio == "pad")
        assert told["vision_feature_select_strategy"] == processor.select_strategy
        assert "curious user" in (folder / "chat_template.jinja").read_text()
