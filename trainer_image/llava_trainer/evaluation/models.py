"""Loading a model the way a server does, to let it answer."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from llava_trainer.data.processor import Processor
from llava_trainer.model.answering import Answerer, make_answerer
from llava_trainer.model.loading import AS_DATA, PLAIN_ATTENTION, load_tuned


@contextmanager
def load_answerer(
    folder: Path, processor: Processor, device: str, dtype: torch.dtype, *, adapter_dir: Path | None = None
) -> Iterator[Answerer]:
    """Load the model in ``folder`` by plain Auto classes; its memory is given back when the context is left.

    Args:
        folder: of the model.
        processor: the run's.
        device: where it answers.
        dtype: in which number format.
        adapter_dir: of an adapter that PEFT merges into it first.

    Raises:
        StageError: the adapter cannot be loaded.
    """
    if adapter_dir is not None:
        model = load_tuned(folder, adapter_dir, dtype, device).merge_and_unload()
    else:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation=PLAIN_ATTENTION, **AS_DATA
        )
    model = model.to(device).eval()
    # What the checkpoint's generation_config.json says must not mix with the spec: both models are asked alike.
    model.generation_config = GenerationConfig()
    try:
        yield make_answerer(model, processor)
    finally:
        # The caller's answerer is of no more use: its weights go, whoever still holds it.
        model.to("meta")
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
