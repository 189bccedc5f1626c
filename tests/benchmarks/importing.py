"""Memory and time of a conversion from the original code's layout: ``python -m tests.benchmarks.importing``.

Writes a LLaVA of 640 M parameters (fp16, 1.28 GB) in that layout, converts it in a process of its own and prints the
most memory that was not the files' own. The vocabulary grows, as with every real checkpoint.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava_trainer.importing import ModelParts, import_model
from tests.trainer import originals

_LLAMA = {
    "vocab_size": 31_990, "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 10,
    "num_attention_heads": 16, "num_key_value_heads": 16,
}  # fmt: skip


def write_source(folder: Path, *, pickled: bool) -> int:
    """Write the checkpoint; returns its size in bytes."""
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(**_LLAMA, tie_word_embeddings=False))
    weights = {name: torch.zeros(tensor.shape, dtype=torch.float16) for name, tensor in llama.state_dict().items()}
    tiny = originals.build()
    projector = {"0": (2048, originals.VISION_WIDTH), "2": (2048, 2048)}
    for number, shape in projector.items():
        weights[f"model.mm_projector.{number}.weight"] = torch.zeros(shape, dtype=torch.float16)
        weights[f"model.mm_projector.{number}.bias"] = torch.zeros(shape[0], dtype=torch.float16)
    for name, tensor in tiny.tower_weights().items():
        weights[f"model.vision_tower.vision_tower.{name}"] = tensor
    originals.write_settings(folder, originals.llava_settings(tiny) | _LLAMA)
    originals.write_tokenizer(folder)
    originals.write_weights(folder, weights, pickled=pickled, shards=2)
    return sum(file.stat().st_size for file in folder.iterdir())


def convert(source: Path, target: Path) -> None:
    """Convert, and print what it took."""
    peak = before = _anonymous_bytes()

    def look(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, _anonymous_bytes())

    began = time.monotonic()
    import_model(ModelParts(source=source), target, on_tensor=look)
    sys.stdout.write(f"{time.monotonic() - began:.1f} s, {(peak - before) / 1e6:.0f} MB of memory at most\n")


def main() -> None:
    """Both kinds of files, one after the other."""
    if len(sys.argv) == 3:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
        return
    for pickled in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "original"
            size = write_source(source, pickled=pickled)
            sys.stdout.write(f"{'pickles' if pickled else 'safetensors'}, {size / 1e9:.2f} GB: ")
            sys.stdout.flush()
            subprocess.run([sys.executable, "-m", __spec__.name, str(source), f"{folder}/hub"], check=True)


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
