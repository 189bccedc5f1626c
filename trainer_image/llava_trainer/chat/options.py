"""The options of ``llava-trainer chat``, those of LLaVA's own ``eval_model`` among them, read into one value.

``eval_model`` (llava/eval/run_llava.py) takes model_path, model_base, query, conv_mode, image_file, sep, temperature,
top_p, num_beams, max_new_tokens, and in its loader load_8bit and load_4bit: each is an option here under that name.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_api.legibility import AspectRatio
from llava_api.spec import Generation
from llava_trainer.model.quantization import Load

CONV_MODES = {
    "vicuna_v1": "",
    "v1": "",
    "llava_v1": (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
}
"""Conversation templates of LLaVA that LLaVA v1.5 can be asked in, with what replaces the system text that training
uses; empty where that stays. Source: conversation.py (conv_vicuna_v1, conv_llava_v1) of haotian-liu/LLaVA."""
_OTHER_CONV_MODES = frozenset(
    {
        "default", "v0", "llama_2", "mistral_instruct", "chatml_direct", "mistral_direct", "plain", "v0_plain",
        "llava_v0", "v0_mmtag", "v1_mmtag", "llava_llama_2", "mpt",
    }
)  # fmt: skip
_EPILOG = """\
Without a question, questions are read line by line: /image FILE shows another picture with the next one, /clear begins
anew, /quit ends. Several questions are asked one after the other, as one conversation.

Exit codes: 0 answered; 1 not, standard error says why; 2 a wrong option.

Example: llava-trainer chat --model merged --base llava-1.5-7b-hf --image receipt.png "What is the total?"
"""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What was asked for."""

    model: Path
    base: Path | None
    images: tuple[Path, ...]
    """Shown with the first question."""
    questions: tuple[str, ...]
    """Empty: they are read from standard input."""
    system: str
    """Replaces LLaVA's system text; empty where that stays."""
    generation: Generation
    load: Load
    device: Literal["auto", "cpu", "cuda"]
    aspect_ratio: AspectRatio | None
    """None: as the model's image processor says."""
    shows_base: bool
    """Whether the base is asked too."""


def read_options(arguments: Sequence[str] | None) -> ChatOptions:
    """Read the command line; what is wrong with it ends the process with code 2 and a message, as argparse does."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.load_8bit and chosen.load_4bit:
        parser.error("--load-8bit and --load-4bit exclude each other: leave one out")
    if chosen.tuned_only and chosen.base is None:
        parser.error("--tuned-only leaves the base out, and there is none: set --base, or leave --tuned-only out")
    if not chosen.sep:
        parser.error("--sep is empty, but must be what stands between the pictures of --image-file, like ','")
    listed = [Path(name) for names in chosen.image_file for name in names.split(chosen.sep) if name.strip()]
    return ChatOptions(
        model=chosen.model,
        base=chosen.base,
        images=(*chosen.image, *listed),
        questions=(*chosen.questions, *([chosen.query] if chosen.query is not None else [])),
        system=CONV_MODES[chosen.conv_mode],
        generation=Generation(
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            num_beams=chosen.num_beams,
            seed=chosen.seed,
            max_new_tokens=chosen.max_new_tokens,
        ),
        load="8bit" if chosen.load_8bit else "4bit" if chosen.load_4bit else "none",
        device=chosen.device,
        aspect_ratio=chosen.image_aspect_ratio,
        shows_base=chosen.base is not None and not chosen.tuned_only,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-trainer chat",
        description="Ask a model about pictures, and beside it the one that it was made from.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("questions", nargs="*", metavar="QUESTION", help="asked one after the other")
    add(
        "--model",
        "--model-path",
        "--model_path",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="model in hub layout (merged/ of a run), or a PEFT adapter (adapter/ of a run), which needs --base",
    )
    add(
        "--base",
        "--model-base",
        "--model_base",
        type=Path,
        metavar="FOLDER",
        help="what it was made from, in hub layout; answers beside it",
    )
    add("--tuned-only", action="store_true", help="take --base for the adapter alone: it is not asked itself")
    add(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="picture that is shown with the first question; repeatable",
    )
    add(
        "--image-file",
        "--image_file",
        action="append",
        default=[],
        metavar="FILES",
        help="pictures in one option, with --sep between them",
    )
    add("--sep", default=",", metavar="TEXT", help="what stands between them (default: %(default)r)")
    add("--query", metavar="QUESTION", help="a question, as eval_model calls it")
    add(
        "--conv-mode",
        "--conv_mode",
        type=_conv_mode,
        default="vicuna_v1",
        metavar="NAME",
        help="conversation template: vicuna_v1, in which training and evaluation ask, or llava_v1 "
        "(default: %(default)s)",
    )
    add(
        "--temperature",
        type=_number(float, 0, 10),
        default=0.2,
        metavar="T",
        help="of sampling; 0 takes the likeliest token (default: %(default)s)",
    )
    add(
        "--top-p",
        "--top_p",
        type=_number(float, 0, 1, above=True),
        metavar="P",
        help="nucleus sampling: smallest share of probability kept (default: off)",
    )
    add(
        "--num-beams",
        "--num_beams",
        type=_number(int, 1, 16),
        default=1,
        metavar="N",
        help="beams of beam search; more than 1 answer at once instead of word by word (default: %(default)s)",
    )
    add(
        "--max-new-tokens",
        "--max_new_tokens",
        type=_number(int, 1, 8192),
        default=512,
        metavar="N",
        help="most tokens of one answer (default: %(default)s)",
    )
    add(
        "--seed",
        type=_number(int, 0, 2**31 - 1),
        default=0,
        metavar="N",
        help="of sampling; the same seed gives the same answer (default: %(default)s)",
    )
    add("--load-8bit", "--load_8bit", action="store_true", help="language model in 8 bits (LLM.int8())")
    add("--load-4bit", "--load_4bit", action="store_true", help="language model in 4 bits (NF4)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to answer (default: %(default)s)")
    add(
        "--image-aspect-ratio",
        "--image_aspect_ratio",
        choices=("pad", "square"),
        help="how pictures become square (default: as the model's image processor says)",
    )
    return parser


def _conv_mode(name: str) -> str:
    if name in CONV_MODES:
        return name
    known = ", ".join(CONV_MODES)
    if name in _OTHER_CONV_MODES:
        raise argparse.ArgumentTypeError(
            f"{name} is the template of other models of LLaVA, and LLaVA v1.5 knows: {known}; leave it out for the one "
            "that training uses"
        )
    raise argparse.ArgumentTypeError(f"{name!r} is none of LLaVA's templates; LLaVA v1.5 knows: {known}")


def _number(kind: type[int] | type[float], least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most or (above and value == least):
            whole = "a whole number" if kind is int else "a number"
            bounds = f"above {least} up to {most}" if above else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"is {text!r} but must be {whole} {bounds}")
        return value

    return read
