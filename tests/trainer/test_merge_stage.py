"""The merge stage on a run's volume: what it leaves, that plain libraries can use it, and what happens on a rerun."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_api.constants import StageName
from llava_api.report import MergeNumbers, StageResult, TrainNumbers
from llava_trainer.attempts.finished import Finished
from llava_trainer.data.encode import encode_prompt
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import load_processor
from llava_trainer.data.samples import Sample, Turn, read_samples, write_samples
from llava_trainer.errors import StageError
from llava_trainer.files import aside_of, sha256_file, sha256_folder
from llava_trainer.merging.samples import NUM_SAMPLES, proof_batches
from llava_trainer.outcome import StageOutput
from llava_trainer.stages import merge
from tests.trainer.checkpoints import edit_weights
from tests.trainer.runs import Recorder, make_run, run_config


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    make_run(root)
    return root


@pytest.fixture
def root(made_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_root, tmp_path / "run"))


def run_merge(root: Path, recorder: list | None = None, **changes: dict) -> StageOutput:
    config = run_config(root, **changes)
    with Recorder(config) as reporter:
        output = merge.run(config, reporter)
    if recorder is not None:
        recorder.extend(reporter.steps)
    return output


def merged_dir(root: Path) -> Path:
    return root / "volume" / "attempts" / "merge-1" / "merged"


@pytest.fixture
def private_umask() -> Iterator[None]:
    """As in a container whose files nobody else may read."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("private_umask")
def test_the_stage_leaves_a_proven_model_and_its_numbers(root: Path) -> None:
    steps: list[tuple[int, int]] = []
    # Forgets what other tests of this process held at their peak.
    Path("/proc/self/clear_refs").write_text("5")
    output = run_merge(root, steps)
    assert isinstance(output.numbers, MergeNumbers)
    assert output.numbers.tensors_merged == 3 * 7 + 4
    assert 0 <= output.numbers.max_logit_difference < 1e-4
    assert 0 < output.numbers.peak_memory_bytes < 100e6
    assert [step for step, _ in steps] == list(range(1, steps[-1][1] + 1))
    assert len({total for _, total in steps}) == 1
    assert not aside_of(merged_dir(root)).exists()
    assert {stat.S_IMODE(file.stat().st_mode) for file in merged_dir(root).iterdir()} == {0o644}
    assert stat.S_IMODE(merged_dir(root).stat().st_mode) == 0o755
    digest = subprocess.run(
        "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum",
        shell=True, cwd=merged_dir(root), check=True, capture_output=True, text=True,
    ).stdout.split()[0]  # fmt: skip
    assert output.digests == {"merged": f"sha256:{digest}"}
    assert output.numbers.mean_kl_divergence is not None
    assert 0 < output.numbers.mean_kl_divergence < 1e-2


def test_the_manifest_tells_every_files_digest_and_what_it_was_made_of(root: Path) -> None:
    config = run_config(root)
    origins = {"model": "hf://llava-hf/llava-1.5-7b-hf@b234b804"}
    inputs = {"version": 1, "modelDir": "model", "datasetDir": "data", "modelLayout": "hub", "origins": origins}
    config.volume.inputs_dir.mkdir(parents=True)
    config.volume.inputs_file.write_text(json.dumps(inputs))
    run_merge(root)
    manifest = json.loads((merged_dir(root) / "merge.json").read_text())
    found = {path.name: path for path in merged_dir(root).iterdir()}
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for name, path in found.items()
        if name != "merge.json"
    }
    assert {"model.safetensors", "config.json", "tokenizer.json"} < found.keys()
    origin = manifest["origin"]
    assert (origin["base"], origin["baseRevision"]) == ("llava-hf/llava-1.5-7b-hf", "b234b804")
    assert origin["baseConfig"] == sha256_file(root / "base" / "config.json")
    assert origin["trained"] == {"adapter": sha256_folder(config.volume.adapter_dir)}
    assert origin["dtype"] == "bfloat16"
    assert origin["versions"]["peft"] == version("peft")
    assert origin["versions"].keys() == {"llava-finetune-operator", "torch", "transformers", "peft", "safetensors"}


def test_a_digest_that_training_has_recorded_is_believed(root: Path) -> None:
    """Weights trained whole are as large as the model: hashing them again would take as long as merging."""
    config = run_config(root)
    numbers = TrainNumbers(steps=1, final_loss=0.1, trainable_parameters=1, tokens=1, world_size=1)
    result = StageResult(stage=StageName.TRAIN, attempt=1, train=numbers, digests={})
    record = Finished(result=result, contents={"adapter": "sha256:ab"})
    (config.volume.result_dir(StageName.TRAIN) / "result.json").write_text(record.model_dump_json())
    run_merge(root)
    assert json.loads((merged_dir(root) / "merge.json").read_text())["origin"]["trained"] == {"adapter": "sha256:ab"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_plain_auto_classes_load_it_in_the_format_asked_for(root: Path, dtype: str) -> None:
    run_merge(root, merge={"dtype": dtype})
    model, found = AutoModelForImageTextToText.from_pretrained(merged_dir(root), output_loading_info=True)
    assert model.dtype == getattr(torch, dtype)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


def test_the_configuration_is_the_bases_but_for_the_number_format(root: Path) -> None:
    run_merge(root)
    base = json.loads((root / "base" / "config.json").read_text())
    merged = json.loads((merged_dir(root) / "config.json").read_text())
    assert merged.pop("dtype") == merged.pop("torch_dtype") == "bfloat16"
    assert {part.pop("dtype") for part in (merged["text_config"], merged["vision_config"])} == {"bfloat16"}
    base.pop("dtype")
    for part in (base["text_config"], base["vision_config"]):
        part.pop("dtype")
    assert merged == base
    name = "generation_config.json"
    assert (merged_dir(root) / name).read_bytes() == (root / "base" / name).read_bytes()


def as_messages(sample: Sample, num_turns: int, image: Image.Image | None) -> list[dict]:
    messages = []
    for index, turn in enumerate(sample.turns[:num_turns]):
        shown = [{"type": "image", "image": image}] if image and index in sample.image_turns else []
        messages.append({"role": turn.role, "content": [*shown, {"type": "text", "text": turn.text}]})
    return messages


def test_plain_auto_processor_gives_the_ids_and_pixels_of_training(root: Path) -> None:
    """Every held-out question, wide and high images too, with and without earlier turns and an image."""
    run_merge(root)
    config = run_config(root)
    served = AutoProcessor.from_pretrained(merged_dir(root))
    trained = load_processor(config.model_dir, "pad")
    compared = 0
    for number, sample in enumerate(read_samples(config.volume.validation_file)):
        image = open_image(root / "data" / "images" / sample.images[0]) if sample.images else None
        if image:
            image = image.resize(((200, 80), (80, 200), (112, 112))[number % 3])
        for before, question, _ in sample.pairs():
            inputs = served.apply_chat_template(
                as_messages(sample, len(before) + 1, image),
                add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            )  # fmt: skip
            assert inputs["input_ids"][0].tolist() == encode_prompt((*before, question), sample.image_turns, trained)
            if image:
                assert np.array_equal(inputs["pixel_values"][0].numpy(), pixel_values(image, trained))
            compared += 1
    assert compared == 9


def test_a_rerun_over_a_half_written_attempt_and_over_a_whole_one(root: Path) -> None:
    aside = aside_of(merged_dir(root))
    aside.mkdir()
    (aside / "model-00001-of-00009.safetensors").write_bytes(b"half")
    first = run_merge(root)
    assert not list(merged_dir(root).glob("model-*"))
    (merged_dir(root) / "stray.txt").write_text("of an earlier attempt")
    assert run_merge(root).digests == first.digests


def test_a_merge_that_fails_leaves_no_model(root: Path) -> None:
    adapter = root / "volume" / "attempts" / "train-1" / "adapter" / "adapter_model.safetensors"
    good = adapter.read_bytes()
    edit_weights(adapter, lambda weights: [t.fill_(torch.inf) for name, t in weights.items() if "layers.2" in name])
    with pytest.raises(StageError, match="not finite"):
        run_merge(root)
    assert not merged_dir(root).exists()
    adapter.write_bytes(good)
    run_merge(root)
    assert merged_dir(root).exists()


def test_without_held_out_samples_the_proof_takes_training_samples(root: Path) -> None:
    config = run_config(root)
    write_samples(config.volume.validation_file, [])
    assert run_merge(root).numbers.max_logit_difference < 1e-4


def test_a_sample_whose_image_would_be_cut_off_is_no_proof(root: Path) -> None:
    """Its image comes after more text than training reads; another sample takes its place."""
    config = run_config(root, training={"maxLength": 100})
    samples = list(read_samples(config.volume.validation_file))
    long = Turn(role="user", text="What is this? " * 40)
    first = Sample(
        id="long",
        images=samples[0].images,
        turns=(long, *samples[0].turns[1:]),
        source=samples[0].source,
        image_turns=(2,),
    )
    write_samples(config.volume.validation_file, [first, *samples[1:]])
    batches = proof_batches(config, load_processor(config.model_dir, "pad"))
    assert len(batches) == NUM_SAMPLES
    assert all(batch["input_ids"].shape[1] <= 100 for batch in batches)
    write_samples(config.volume.validation_file, samples[1:])
    again = proof_batches(config, load_processor(config.model_dir, "pad"))
    assert [batch["input_ids"].tolist() for batch in batches] == [batch["input_ids"].tolist() for batch in again]
