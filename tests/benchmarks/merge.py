"""Merging and its proof against peft's ``merge_and_unload`` and ``save_pretrained``: time, memory, and the same bits.

A LLaVA of 985 M parameters in bfloat16 (1.97 GB, 6 files) and an adapter of rank 16 with its projector. Every side
has a process of its own, in turns; of each the quickest is told. The proof is made once. Memory is what is resident
at its most above what the imports take.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_api.spec import Merge
from llava_trainer.files import sync
from llava_trainer.host_memory import peak_resident_bytes, resident_bytes, return_freed_memory
from llava_trainer.merging.blocks import build_empty, hub_of
from llava_trainer.merging.changes import read_adapter
from llava_trainer.merging.folder import write_config
from llava_trainer.merging.lanes import Batch
from llava_trainer.merging.proof import prove_merge
from llava_trainer.merging.recipes import find_tensors, plan_merge
from llava_trainer.merging.reference import Reference
from llava_trainer.tensors.recipes import TensorRecipe
from llava_trainer.tensors.writing import write_checkpoint, write_tensors
from tests.trainer.checkpoints import TARGETS

SHARD_BYTES = 345_000_000
ALLOWANCE_BYTES = 512 << 20
IMAGE_ID = 32_000
ROUNDS = 4


def describe() -> LlavaConfig:
    """A Llama of 16 layers and a small tower; LLaVA's vocabulary, and 576 tokens an image."""
    text = LlamaConfig(
        vocab_size=32_064, hidden_size=2048, intermediate_size=5632, num_hidden_layers=16, num_attention_heads=16,
    )  # fmt: skip
    tower = CLIPVisionConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8, image_size=336,
        patch_size=14, projection_dim=512,
    )  # fmt: skip
    return LlavaConfig(text_config=text, vision_config=tower, image_token_id=IMAGE_ID, tie_word_embeddings=False)


def make_case(root: Path) -> LlavaForConditionalGeneration:
    """Write base and adapter below ``root``; the model without weights."""
    torch.manual_seed(0)
    llava = build_empty(describe())
    (root / "base").mkdir()
    recipes = [
        draw(str(hub_of(name)), tuple(parameter.shape), torch.bfloat16) for name, parameter in llava.named_parameters()
    ]
    write_checkpoint(root / "base", recipes, max_shard_bytes=SHARD_BYTES)
    settings = llava.config.to_dict() | {"architectures": [type(llava).__name__], "dtype": "bfloat16"}
    (root / "base" / "config.json").write_text(json.dumps(settings))
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, modules_to_save=["multi_modal_projector"])
    tuned = get_peft_model(build_empty(describe()), lora, low_cpu_mem_usage=True)
    (root / "adapter").mkdir()
    tensors = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    write_tensors(
        root / "adapter" / "adapter_model.safetensors",
        [draw(name, tuple(tensor.shape), torch.float32) for name, tensor in tensors.items()],
    )
    lora.save_pretrained(str(root / "adapter"))
    return llava


def draw(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> TensorRecipe:
    """A tensor of random numbers of the size that trained ones have; norms are near 1."""
    centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    return TensorRecipe(
        name=name, dtype=dtype, shape=shape, make=lambda: torch.randn(shape).mul_(0.02).add_(centre).to(dtype)
    )


def make_batches() -> list[Batch]:
    """Two questions about an image and one without."""
    torch.manual_seed(1)
    batches: list[Batch] = []
    for length, has_image in ((800, True), (700, True), (128, False)):
        ids = torch.randint(3, IMAGE_ID, (1, length))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if has_image:
            ids[:, 35 : 35 + 576] = IMAGE_ID
            batch["pixel_values"] = torch.randn(1, 3, 336, 336)
        batches.append(batch)
    return batches


def merge_ours(root: Path, out: Path, *, proves: bool) -> dict[str, float]:
    """Write, hashed and synced; and prove, which takes longest."""
    began = time.perf_counter()
    return_freed_memory()
    out.mkdir()
    recipes = plan_merge(root / "base", read_adapter(root / "adapter"), torch.bfloat16)
    write_checkpoint(out, recipes, max_shard_bytes=SHARD_BYTES)
    written = time.perf_counter()
    found = {"writing_s": written - began, "writing_bytes": peak_resident_bytes()}
    if not proves:
        return found
    write_config(root / "base", out, Merge())
    reference = Reference(base_dir=root / "base", adapter_dir=root / "adapter")
    proof = prove_merge(reference, out, make_batches())
    return found | {
        "proving_s": time.perf_counter() - written,
        "bytes": peak_resident_bytes(),
        "max_logit_difference": proof.max_logit_difference,
        "mean_kl_divergence": proof.mean_kl_divergence,
        "varying": proof.num_varying,
    }


def merge_plainly(root: Path, out: Path, *, proves: bool) -> dict[str, float]:
    """As peft's documentation does it; nothing is proven."""
    del proves
    began = time.perf_counter()
    base = LlavaForConditionalGeneration.from_pretrained(root / "base", dtype=torch.bfloat16)
    PeftModel.from_pretrained(base, root / "adapter").merge_and_unload().save_pretrained(out, max_shard_size="345MB")
    written = time.perf_counter()
    for file in out.iterdir():
        sync(file)
    return {
        "writing_s": written - began, "synced_s": time.perf_counter() - began, "bytes": peak_resident_bytes(),
    }  # fmt: skip


SIDES: Mapping[str, Callable[..., dict[str, float]]] = {"ours": merge_ours, "peft": merge_plainly}


def run_side(root: Path, side: str, round_number: int) -> dict[str, float]:
    """One side in a process of its own, while the disk has nothing of the others' to write."""
    os.sync()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.merge", "--side", side, "--root", str(root),
         "--out", str(root / f"{side}-{round_number}"), *(["--proves"] if round_number == 0 else [])],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def count_unequal(first: Path, second: Path) -> tuple[int, int]:
    """Tensors that differ in any bit, of how many."""
    mine, theirs = find_tensors(first), find_tensors(second)
    assert mine.keys() == theirs.keys()
    unequal = [
        name
        for name in mine
        if not torch.equal(mine[name].read().view(torch.int16), theirs[name].read().view(torch.int16))
    ]
    return len(unequal), len(mine)


def bound_of(llava: LlavaForConditionalGeneration) -> int:
    """The larger of four largest tensors and 2.5 decoder layers in fp32, and what is allowed above it."""
    sizes = sorted((4 * parameter.numel() for parameter in llava.parameters()), reverse=True)
    layer = sum(4 * parameter.numel() for parameter in llava.model.language_model.layers[0].parameters())
    return max(sum(sizes[:4]), layer * 5 // 2) + ALLOWANCE_BYTES


def compare(root: Path) -> None:
    """Print the table."""
    llava = make_case(root)
    num_parameters = sum(parameter.numel() for parameter in llava.parameters())
    num_files = len(list((root / "base").glob("*.safetensors")))
    print(f"{num_parameters / 1e6:,.0f} M parameters, {num_files} files, {os.cpu_count()} cores")
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for round_number in range(ROUNDS):
        for side in SIDES:
            runs[side].append(run_side(root, side, round_number))
            print(side, {name: round(value, 6) for name, value in runs[side][-1].items()}, flush=True)
    proven = runs["ours"][0]
    ours, peft = (min(runs[side], key=lambda run: run["writing_s"]) for side in SIDES)
    synced_s = min(run["synced_s"] for run in runs["peft"])
    unequal, total = count_unequal(root / "ours-0", root / "peft-0")
    print()
    print("| | writing, s | proof, s | peak memory above the imports, MB |")
    print("| --- | --- | --- | --- |")
    print(f"| peft: merge_and_unload, save_pretrained | {peft['writing_s']:.1f} | | {peft['bytes'] / 1e6:,.0f} |")
    print(f"| the same, and on the disk | {synced_s:.1f} | | |")
    print(
        f"| ours: written with digests, on the disk | {ours['writing_s']:.1f} | | {ours['writing_bytes'] / 1e6:,.0f} |"
    )
    print(
        f"| the same, and proven | {ours['writing_s']:.1f} | {proven['proving_s']:.1f} | {proven['bytes'] / 1e6:,.0f} "
        f"(bound: {bound_of(llava) / 1e6:,.0f}) |"
    )
    print()
    print(f"{total - unequal} of {total} tensors are equal to peft's to the bit")


def main() -> None:
    """The comparison, or one side of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--proves", action="store_true")
    arguments = parser.parse_args()
    if arguments.side:
        # Whatever the first product sets up belongs to no side.
        torch.ones(64, 64) @ torch.ones(64, 64)
        before = resident_bytes()
        found = SIDES[arguments.side](arguments.root, arguments.out, proves=arguments.proves)
        print(json.dumps({name: value - before if name.endswith("bytes") else value for name, value in found.items()}))
        return
    with tempfile.TemporaryDirectory(prefix="bench-merge-") as folder:
        compare(Path(folder))


if __name__ == "__main__":
    main()
