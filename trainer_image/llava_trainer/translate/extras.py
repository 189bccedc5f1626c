"""What stands around the training command: merging, questions to the tuned model, flags without an effect."""

import posixpath
import re
from collections.abc import Sequence

from llava_trainer.translate.draft import Draft
from llava_trainer.translate.errors import TranslateError
from llava_trainer.translate.eval_block import READ_KEYS, EvalArguments, Value
from llava_trainer.translate.flags import Flags
from llava_trainer.translate.known import FLAGS
from llava_trainer.translate.launches import Launch
from llava_trainer.translate.places import is_hub_name, tidy

_MERGE_FLAGS = ("model-path", "model-base", "save-model-path")
_MERGE_MEANT = {"lora-path": "model-path", "output-path": "save-model-path", "lora-model-path": "model-path",
                "base-model-path": "model-base", "output-dir": "save-model-path"}  # fmt: skip
_EVAL_DEFAULTS: dict[str, Value] = {
    "sep": ",",
    "temperature": 0.2,
    "top_p": None,
    "num_beams": 1,
    "max_new_tokens": 512,
}
_NEVER_READ = ("load_8bit", "load_4bit", "load_in_8bit", "load_in_4bit")
_MAX_PROMPTS = 32
_STEERING = re.compile(
    r"(NCCL|GLOO|WANDB|HF|HUGGINGFACE|TRANSFORMERS|TOKENIZERS|TORCH|PYTORCH|OMP|DS|CUDA(?!_VISIBLE))_\w+"
)


def say_merge(draft: Draft, launch: Launch) -> None:
    """Comment on a merge line; merging itself is a stage of every run."""
    draft.put("merge.dtype", "bfloat16")
    given = [word.partition("=")[0].lstrip("-").replace("_", "-") for word in launch.arguments if word.startswith("--")]
    draft.say("merge", f"line {launch.line}: merging is a stage of the run; the merged model is the folder merged of "
                       "its volume")  # fmt: skip
    wrong = [name for name in given if name not in _MERGE_FLAGS]
    if wrong:
        meant = "; ".join(f"--{name}" + (f" (meant: --{_MERGE_MEANT[name]})" if name in _MERGE_MEANT else "")
                          for name in wrong)  # fmt: skip
        draft.warn(
            "merge",
            f"flags that merge_lora_weights.py does not have: {meant}; the real ones are "
            f"{', '.join('--' + name for name in _MERGE_FLAGS)}",
        )
    elif missing := [name for name in _MERGE_FLAGS if name not in given]:
        draft.warn("merge", f"merge_lora_weights.py would ask for {', '.join('--' + name for name in missing)}")


def read_eval_command(launch: Launch) -> EvalArguments:
    """Arguments of ``python -m llava.eval.run_llava …``, which has defaults.

    Raises:
        TranslateError: a value that is no number.
    """
    given: dict[str, str] = {}
    words = list(launch.arguments)
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            given[name.replace("-", "_")] = value if equals else following
    values = _EVAL_DEFAULTS | {key: given[key] for key in ("query", "image_file", "sep") if key in given}
    for key, kind in (("temperature", float), ("top_p", float), ("num_beams", int), ("max_new_tokens", int)):
        if key in given:
            try:
                values[key] = kind(given[key])
            except ValueError:
                raise TranslateError(f"line {launch.line}: --{key} {given[key]}: must be a number") from None
    return EvalArguments(values=values, given=READ_KEYS, line=launch.line)


def write_evaluation(draft: Draft, blocks: Sequence[EvalArguments], image_folder: str | None) -> None:
    """Decide ``spec.evaluation`` from what ``eval_model`` is given."""
    prompts: list[dict[str, str]] = []
    for block in blocks[:_MAX_PROMPTS]:
        prompts.append(_prompt(draft, block, image_folder))
        _check_block(draft, block)
    draft.put("evaluation.prompts", prompts)
    if len(blocks) > _MAX_PROMPTS:
        draft.warn("evaluation.prompts", f"the first {_MAX_PROMPTS} of {len(blocks)} questions")
    last = blocks[-1]
    for key, name in (("temperature", "temperature"), ("top_p", "topP"), ("num_beams", "numBeams"),
                      ("max_new_tokens", "maxNewTokens")):  # fmt: skip
        if last.values.get(key) is not None:
            draft.put(f"evaluation.generation.{name}", last.values[key])
    if any(block.values.get(key) != last.values.get(key) for block in blocks for key in _EVAL_DEFAULTS if key != "sep"):
        draft.warn("evaluation.generation", "the questions have different settings; those of the last one are taken")


def _prompt(draft: Draft, block: EvalArguments, image_folder: str | None) -> dict[str, str]:
    query = str(block.values.get("query") or "").replace("<image-placeholder>", "").strip()
    prompt: dict[str, str] = {}
    images = _images(block)
    if images:
        prompt["image"] = _place_image(draft, images[0], image_folder)
    if len(images) > 1:
        draft.warn("evaluation.prompts", f"a question shows one picture here; the first of {len(images)} is taken")
    prompt["text"] = query or "Describe this image in detail."
    if not query:
        draft.warn("evaluation.prompts", f"line {block.line}: eval_model is given no query; this one asks for all")
    return prompt


def _images(block: EvalArguments) -> list[str]:
    images = block.values.get("image_file")
    if isinstance(images, str):
        separator = block.values.get("sep") or ","
        return [image.strip() for image in images.split(str(separator)) if image.strip()]
    return [str(image) for image in images] if isinstance(images, Sequence) else []


def _place_image(draft: Draft, image: str, image_folder: str | None) -> str:
    """An image's path below ``dataset.images``."""
    inside = (
        posixpath.relpath(image, image_folder)
        if image_folder and "://" not in image and (image.startswith("/") == image_folder.startswith("/"))
        else ".."
    )
    if not inside.startswith(".."):
        return inside
    name = tidy(image.split("?")[0]).rsplit("/", 1)[-1] or "example.png"
    renamed = "" if name == image else f" as {name}"
    draft.warn("evaluation.prompts", f"put {image}{renamed} into the folder dataset.images, or remove the question")
    return name


def _check_block(draft: Draft, block: EvalArguments) -> None:
    missing = [key for key in READ_KEYS if key not in block.given]
    if missing:
        draft.warn(
            "evaluation.generation",
            f"line {block.line}: eval_model reads {', '.join(missing)}, which the block does not have, and would end "
            "with an AttributeError; taken as left out",
        )
    never_read = [key for key in _NEVER_READ if key in block.given]
    if never_read:
        draft.warn("evaluation.generation", f"line {block.line}: eval_model never reads {', '.join(never_read)}")


def say_without_effect(draft: Draft, flags: Flags, place: str, said: Flags | None = None) -> None:
    """Comment on every flag that nothing comes of, by reason; but for those that ``said`` has just so."""
    by_reason: dict[str, list[str]] = {}
    for name in flags.given:
        if FLAGS[name].taken and flags.text(name) in FLAGS[name].taken:
            continue
        if (reason := FLAGS[name].no_effect) and not (said and said.written.get(name) == flags.written[name]):
            by_reason.setdefault(reason, []).append(flags.written[name])
    for reason, written in by_reason.items():
        draft.say(place, f"no effect here: {', '.join(written)} ({reason})")


def say_unknown(draft: Draft, flags: Flags, place: str) -> None:
    """Warn of what train.py itself would not take."""
    for unknown in flags.unknown:
        nearest = f"; the nearest that it has is --{unknown.nearest}" if unknown.nearest else ""
        draft.warn(place, f"{unknown.written}: train.py has no such flag{nearest}; left out")
    for word in flags.stray:
        draft.warn(place, f"{word!r} belongs to no flag; left out")
    for name in flags.repeated:
        draft.warn(place, f"--{name} is given more than once; the last one counts: {flags.written[name]}")


def say_environment(draft: Draft, launch: Launch) -> None:
    """Comment on variables that would have steered the command. By name only: one may hold a key."""
    names = [name for name in launch.environment if _STEERING.match(name)]
    if names:
        draft.say(
            "workers",
            f"not taken over: {', '.join(names)}; pods have an environment and network interfaces of their own (for "
            "NCCL see workers.network)",
        )


def say_paths_of_others(draft: Draft, merges: Sequence[Launch], flags: Flags) -> None:
    """Warn where the merge line names another base than the training command."""
    base = flags.text("model_name_or_path")
    for launch in merges:
        words = dict(zip(launch.arguments, launch.arguments[1:], strict=False))
        named = words.get("--model-base")
        if base and named and tidy(named) != tidy(base) and (is_hub_name(named) == is_hub_name(base)):
            draft.warn(
                "merge", f"--model-base {named} is not what was trained ({base}): the run merges into the latter"
            )
