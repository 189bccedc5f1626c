"""The models that answer: loaded from their folders, each with what was said to it and by it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError

from llava_api.legibility import AspectRatio
from llava_api.text import show
from llava_trainer.chat.conversation import Conversation
from llava_trainer.chat.errors import ChatError
from llava_trainer.chat.options import ChatOptions
from llava_trainer.data.model_config import read_settings
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.errors import StageError
from llava_trainer.evaluation.models import load_answerer
from llava_trainer.model.adapter_folder import CONFIG_FILE, AdapterError, read_adapter_folder
from llava_trainer.model.answering import Answerer


@dataclass
class Speaker:
    """One model in the conversation; it remembers its own answers."""

    name: Literal["base", "tuned"]
    answerer: Answerer
    processor: Processor
    conversation: Conversation

    @property
    def context(self) -> int:
        """Most tokens of question and answer."""
        length: int = self.answerer.model.config.text_config.max_position_embeddings
        return length


@contextmanager
def load_speakers(options: ChatOptions) -> Iterator[list[Speaker]]:
    """Load the base, where it is asked too, and the model.

    Raises:
        ChatError: a folder is not what it should be, or memory does not suffice.
    """
    device, dtype = _choose_device(options.device)
    adapter_dir, model_dir = _tell_apart(options)
    folders: list[tuple[Literal["base", "tuned"], Path, Path | None]] = [("tuned", model_dir, adapter_dir)]
    if options.shows_base:
        assert options.base is not None
        folders.insert(0, ("base", options.base, None))
    with ExitStack() as stack:
        speakers = []
        for name, folder, adapter in folders:
            try:
                processor = load_processor(folder, options.aspect_ratio or find_aspect_ratio(folder))
                answerer = stack.enter_context(
                    load_answerer(folder, processor, device, dtype, adapter_dir=adapter, load=options.load)
                )
            except StageError as error:
                raise ChatError(error.message) from error
            except torch.OutOfMemoryError as error:
                raise ChatError(
                    f"{show(folder)} does not fit into the GPU: try --load-8bit or --load-4bit, leave --base out, or "
                    f"set --device cpu ({show(error, max_chars=200)})"
                ) from error
            except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
                raise ChatError(f"{show(folder)} cannot be loaded: {show(error, max_chars=500)}") from error
            speakers.append(
                Speaker(
                    name=name, answerer=answerer, processor=processor, conversation=Conversation(system=options.system)
                )
            )
        yield speakers


def find_aspect_ratio(model_dir: Path) -> AspectRatio:
    """How pictures become square by a model's image processor; padding, LLaVA v1.5's recipe, where it does not say.

    Raises:
        StageError: InvalidModel; a file is damaged.
    """
    for name, inside in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        if (path := model_dir / name).is_file():
            settings = read_settings(path)
            found = settings if inside is None else settings.get(inside)
            if isinstance(found, dict) and isinstance(found.get("do_pad"), bool):
                return "pad" if found["do_pad"] else "square"
    return "pad"


def _tell_apart(options: ChatOptions) -> tuple[Path | None, Path]:
    """The adapter, if the model is one, and the folder of the model itself.

    Raises:
        ChatError: there is no such folder, or an adapter without a base, or one that cannot be applied.
    """
    for option, folder in (("--model", options.model), ("--base", options.base)):
        if folder is not None and not folder.is_dir():
            raise ChatError(f"{option} is {show(folder)}, which is no folder: give that of a model in hub layout")
    if not (options.model / CONFIG_FILE).is_file():
        return None, options.model
    if options.base is None:
        raise ChatError(
            f"--model is {show(options.model)}, an adapter: set --base to the model that it was trained upon"
        )
    try:
        read_adapter_folder(options.model)
    except AdapterError as error:
        raise ChatError(f"--model is {show(options.model)}, an adapter that cannot be used: {error}") from error
    except StageError as error:
        raise ChatError(error.message) from error
    return options.model, options.base


def _choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> tuple[str, torch.dtype]:
    """Where to answer, and in which number format."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ChatError("--device is cuda, and torch finds no GPU that it can use: set --device cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return "cpu", torch.float32
    return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
