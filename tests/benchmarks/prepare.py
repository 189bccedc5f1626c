"""``make bench-prepare``: how fast data is checked, beside a plain Pillow loop; ``--memory``: what memory it takes.

Speed: 336 px JPEGs, each with a question of its own, through everything that prepare does with a dataset (reading,
opening, decoding and comparing images, tokenising, splitting, writing). The two take turns over the same images, so
that whatever else the machine does holds both up alike.

Memory: an export of a gigabyte with 100,000 samples. Resident memory is measured above what the imports take, in a
process of its own for each export.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from llava_trainer.data.dataset import prepare_dataset
from llava_trainer.data.processor import load_processor
from llava_trainer.data.request import DatasetRequest, training_request
from llava_trainer.data.samples import write_lines
from tests.tiny.base import make_untrained_base
from tests.trainer.exports import conversation, document, draw_image, prepare_config, write_json

IMAGE_PX = 336
ROUNDS = 10
_MIB = 2**20


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000, help="pictures to check (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the exports (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=100_000, help="their samples (default: %(default)s)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(_measure(chosen.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as folder:
        root = Path(folder)
        make_untrained_base(root / "base")
        if chosen.memory:
            compare_memory(root, chosen.megabytes, chosen.samples)
        else:
            compare_speed(root, chosen.images)


def compare_speed(root: Path, num_images: int) -> None:
    """Print images a second of both sides, and their ratio."""
    a_round = num_images // ROUNDS
    print(f"drawing {a_round * ROUNDS:,} JPEGs of {IMAGE_PX} x {IMAGE_PX} px")
    for number in range(ROUNDS):
        _draw_round(root / f"{number}", a_round, seed=number)
    processor = load_processor(root / "base", "pad")
    seconds = {"ours": 0.0, "plain": 0.0}
    busy = dict(seconds)
    for number in range(ROUNDS):
        # Whoever begins finds the images less warm.
        for side in ("ours", "plain") if number % 2 else ("plain", "ours"):
            begin, begin_busy = time.perf_counter(), time.process_time()
            if side == "plain":
                _decode_plainly(root / f"{number}" / "dataset" / "images")
            else:
                request = _request(root / f"{number}", root / "base")
                with prepare_dataset(request, processor, root / "spool") as dataset:
                    assert not dataset.findings.num_refused, dataset.findings.kept
                    for held_out in (False, True):
                        write_lines(root / f"side-{held_out}.jsonl", dataset.lines(dataset.held_out == held_out))
            seconds[side] += time.perf_counter() - begin
            busy[side] += time.process_time() - begin_busy
    rates = {side: a_round * ROUNDS / taken for side, taken in seconds.items()}
    size = next((root / "0" / "dataset" / "images").iterdir()).stat().st_size
    print(f"pictures of {size / 1024:.0f} KiB, one question and answer each")
    told = {"ours": "prepare", "plain": "plain Pillow loop (open, convert to RGB; one thread, nothing checked)"}
    for side, rate in rates.items():
        print(f"{rate:8,.0f} pictures/s, {1000 * busy[side] / a_round / ROUNDS:.2f} ms of a core each: {told[side]}")
    print(f"{rates['ours'] / rates['plain']:8.2f} ratio")


def _draw_round(root: Path, count: int, seed: int) -> None:
    images = root / "dataset" / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC), dtype=np.int16)
    grained = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    entries = []
    for index in range(count):
        down, right = divmod(index * 37, IMAGE_PX)
        image = Image.fromarray(np.roll(grained, (down % IMAGE_PX, right), axis=(0, 1)))
        image.save(images / f"{index:06}.jpg", quality=85)
        entries.append(conversation(f"{index:06}.jpg", [(f"What is in picture {index}?", "A pattern of colours.")]))
    write_json(root / "dataset" / "export.json", entries)


def _request(root: Path, model_dir: Path, **changes: object) -> DatasetRequest:
    return training_request(prepare_config(root, model_dir, **changes))


def _decode_plainly(images: Path) -> None:
    for path in sorted(images.iterdir()):
        with Image.open(path) as opened:
            opened.convert("RGB")


def compare_memory(root: Path, megabytes: int, num_samples: int) -> None:
    """Print the peak of exports of several forms and sizes."""
    folder = root / "memory"
    for index in range(8):
        draw_image(folder / "dataset" / "images" / f"{index}.png", seed=index)
    print(f"{'export':28} {'size':>9} {'samples':>9} {'peak above imports':>20}")
    for form, size, samples in (
        ("llava, short texts", 0, num_samples // 10),
        ("llava, short texts", 0, num_samples),
        ("llava, long texts", megabytes // 10, num_samples // 10),
        ("ubiai, long documents", megabytes // 10, num_samples // 10),
        ("ubiai, long documents", megabytes, num_samples),
        ("llava, long texts", megabytes, num_samples),
    ):
        export = _write_export(folder / "dataset", form, size * 1_000_000, samples)
        config = prepare_config(folder, root / "base", format=form.split(",")[0])
        (folder / "run.json").write_text(config.model_dump_json())
        found = json.loads(_run_alone(folder / "run.json"))
        print(
            f"{form:28} {export.stat().st_size / 1e6:6,.0f} MB {found['samples']:9,} "
            f"{found['peak'] / _MIB:14,.0f} MiB ({found['seconds']:.0f} s)",
            flush=True,
        )


def _write_export(folder: Path, form: str, num_bytes: int, num_samples: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "export.json"
    with path.open("w") as stream:
        for index, entry in enumerate(_entries(form, num_bytes // num_samples, num_samples)):
            stream.write(("[" if index == 0 else ",\n") + json.dumps(entry))
        stream.write("]\n")
    return path


def _entries(form: str, num_bytes: int, num_samples: int) -> Iterator[dict[str, object]]:
    rng = random.Random(0)
    words = ["total", "amount", "invoice", "of", "the", "date", "9.00", "is", "company"]
    text = " ".join(rng.choice(words) for _ in range(num_bytes // 5 + 2))[: max(8, num_bytes)]
    for index in range(num_samples):
        question = f"What stands in place {index}?"
        name = f"{index % 8}.png"
        if form.startswith("ubiai"):
            yield document(name, [(question, f"{index}")], document=text)
        else:
            yield conversation(name, [(question, f"{index} {text}")])


def _run_alone(config_file: Path) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.prepare", "--measure", str(config_file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _measure(config_file: Path) -> dict[str, float]:
    """Prepare one dataset; returns the peak of resident memory above what was there before, in bytes."""
    from llava_api.run_config import RunConfig

    config = RunConfig.model_validate_json(config_file.read_bytes())
    processor = load_processor(config.model_dir, "pad")
    processor.tokenizer("warm up")
    before = _resident_bytes()
    peak = _Peak()
    begin = time.perf_counter()
    with peak, prepare_dataset(training_request(config), processor, config.volume_root / "spool") as dataset:
        samples = len(dataset.samples)
        write_lines(config.volume.train_file, dataset.lines(dataset.trained))
    return {"peak": peak.bytes - before, "samples": samples, "seconds": time.perf_counter() - begin}


class _Peak:
    """The most resident memory while it is open, looked at 50 times a second; the kernel's mark counts imports, too."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, _resident_bytes())


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
