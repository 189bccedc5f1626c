"""``llava-trainer translate FILE|-``: options, files, standard output and error, exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from llava_trainer.translate.errors import OptionMissingError, TranslateError
from llava_trainer.translate.manifest import Options, translate

EXIT_TRANSLATED = 0
EXIT_NOT_TRANSLATED = 1
"""The text cannot be translated; nothing is written to standard output."""
EXIT_OPTION_MISSING = 3
"""An option is needed that the message names. (2 is argparse's: a wrong option.)"""

_MAX_TEXT = 2_000_000
"""Characters; a notebook with its images is longer than a script."""
_MAX_FILE_BYTES = 1_000_000
_EPILOG = """\
Exit codes: 0 translated (warnings go to standard error and, as comments, into the manifest); 1 the text cannot be
translated; 2 a wrong option; 3 the text lacks something that an option supplies, such as --gpus.

Example: llava-trainer translate finetune.sh --gpus 8 --dataset-claim invoices > run.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Translate a file or standard input; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        text, folder = _read(chosen.file)
        translation = translate(text, _options(chosen), lambda name: _read_beside(folder, name))
    except TranslateError as error:
        sys.stderr.write(f"llava-trainer translate: {error}\n")
        return EXIT_OPTION_MISSING if isinstance(error, OptionMissingError) else EXIT_NOT_TRANSLATED
    for warning in translation.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    sys.stdout.write(translation.text)
    return EXIT_TRANSLATED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-trainer translate",
        description="Turn LLaVA's own commands (deepspeed llava/train/train_mem.py …, merge_lora_weights.py, "
        "eval_model) into a LlavaFineTune manifest.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="script, notebook or text of a page; - reads standard input")
    parser.add_argument("--gpus", type=_count(0, 16), metavar="N", help="GPUs of each pod; 0 trains on the CPU")
    parser.add_argument("--nodes", type=_count(1, 1024), metavar="N", help="pods that train")
    parser.add_argument("--name", metavar="NAME", help="name of the run; made from --output_dir if left out")
    parser.add_argument("--dataset-claim", metavar="CLAIM[/FOLDER]", help="claim that holds the dataset")
    parser.add_argument("--model-claim", metavar="CLAIM[/FOLDER]", help="claim that holds models named by a path")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        help="value of a variable that the text uses and does not assign ($1 is NAME 1); repeatable",
    )
    parser.add_argument("--literal", action="store_true",
                        help="take the training command by its word where the text contradicts it")  # fmt: skip
    return parser


def _options(chosen: argparse.Namespace) -> Options:
    return Options(
        gpus=chosen.gpus, nodes=chosen.nodes, name=chosen.name, dataset_claim=chosen.dataset_claim,
        model_claim=chosen.model_claim, variables=dict(chosen.set), literal=chosen.literal,
    )  # fmt: skip


def _read(name: str) -> tuple[str, Path]:
    """The text, and the folder in which files that it names are looked for."""
    try:
        text = sys.stdin.read(_MAX_TEXT + 1) if name == "-" else _read_file(Path(name))
    except (OSError, UnicodeDecodeError) as error:
        raise TranslateError(f"{name} cannot be read: {error}") from error
    if len(text) > _MAX_TEXT:
        raise TranslateError(f"{name} has more than {_MAX_TEXT} characters: give the part with the commands")
    return text, Path() if name == "-" else Path(name).parent


def _read_file(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(_MAX_TEXT + 1)


def _read_beside(folder: Path, name: str) -> str | None:
    """A small text file that the text names, from the current folder or the text's own."""
    for file in (Path(name), folder / name):
        try:
            if file.stat().st_size <= _MAX_FILE_BYTES and file.is_file():
                return file.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
    return None


def _count(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a number from {least} to {most}")
        return int(text)

    return read


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not (name.isidentifier() or name.isdecimal()):
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    return name, value
