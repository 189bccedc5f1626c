"""Loading a model the way a server does, to let it answer."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from llava_trainer.data.processor import Processor
from llava_trainer.model.answering import Answerer, make_answerer
from llava_trainer.model.loading import AS_DATA, PLAIN_ATTENTION, load_tuned
from llava_trainer.model.quantization import Load, answer_in, count_parameter_bytes

_CASTING = "bitsandbytes.autograd._functions"
"""Logger that says at every layer of every token that LLM.int8() multiplies in fp16."""

logger = logging.getLogger(__name__)


@contextmanager
def load_answerer(
    folder: Path,
    processor: Processor,
    device: str,
    dtype: torch.dtype,
    *,
    adapter_dir: Path | None = None,
    load: Load = "none",
) -> Iterator[Answerer]:
    """Load the model in ``folder`` by plain Auto classes; its memory is given back when the context is left.

    Args:
        folder: of the model.
        processor: the run's.
        device: where it answers.
        dtype: in which number format.
        adapter_dir: of an adapter that PEFT merges into it first, before anything is quantised: what is merged into
            quantised weights is rounded twice, and another model than the one that is served.
        load: how the language model's linear layers are quantised.

    Raises:
        StageError: the adapter cannot be loaded.
    """
    how: dict[str, Any] = {"dtype": dtype, "attn_implementation": PLAIN_ATTENTION}
    if (quantization := answer_in(load, dtype)) is not None:
        # Each tensor is quantised when it is read: the whole in full precision may not fit into the GPU.
        how |= {"quantization_config": quantization, "device_map": {"": device}}
    if adapter_dir is None:
        model = AutoModelForImageTextToText.from_pretrained(folder, **how, **AS_DATA)
    else:
        model = load_tuned(folder, adapter_dir, dtype, device if load == "none" else "cpu").merge_and_unload()
        if load != "none":
            state = model.state_dict()
            model = type(model).from_pretrained(None, config=model.config, state_dict=state, **how, **AS_DATA)
    if load == "none":
        model = model.to(device)
    else:
        logging.getLogger(_CASTING).setLevel(logging.ERROR)
    model = model.eval()
    logger.info("the weights of %s take %.2f GB (load: %s)", folder, count_parameter_bytes(model) / 1e9, load)
    # What the checkpoint's generation_config.json says must not mix with the spec: both models are asked alike.
    model.generation_config = GenerationConfig()
    try:
        yield make_answerer(model, processor)
    finally:
        # The caller's answerer is of no more use: its weights go, whoever still holds it.
        _give_back(model)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def _give_back(model: torch.nn.Module) -> None:
    """Take a model's weights away; ``to`` refuses to move quantised ones."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(buffer, device="meta"))
