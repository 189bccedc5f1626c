"""Command line: ``python -m tests.tiny.make --base DIR --export DIR --format ubiai``."""

import argparse
import sys
import time
from pathlib import Path

from tests.tiny.base import make_base
from tests.tiny.export import make_export


def main(arguments: list[str] | None = None) -> int:
    """Make what was asked for, and say how long it took."""
    parser = argparse.ArgumentParser(description="Make a tiny pre-trained LLaVA and a toy export to tune it on.")
    parser.add_argument("--base", type=Path, help="folder for the base model, in hub layout")
    parser.add_argument("--export", type=Path, help="folder for pictures and export.json")
    parser.add_argument("--format", choices=("ubiai", "llava"), default="ubiai", help="format of the export")
    parser.add_argument("--shuffled", action="store_true", help="deal the answers out at random (control experiment)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    chosen = parser.parse_args(arguments)
    if chosen.base is None and chosen.export is None:
        parser.error("nothing to make: give --base, --export or both")
    began = time.monotonic()
    if chosen.base is not None:
        make_base(chosen.base, chosen.seed)
        sys.stdout.write(f"base model in {chosen.base} after {time.monotonic() - began:.0f} s\n")
    if chosen.export is not None:
        num_images = make_export(chosen.export, format=chosen.format, seed=chosen.seed, shuffled=chosen.shuffled)
        sys.stdout.write(f"{num_images} pictures in {chosen.export}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
