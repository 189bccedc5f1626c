"""Loading a model the way a server does, and encoding questions for it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from llava_trainer.data.encode import encode_prompt
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import Processor
from llava_trainer.evaluation.answering import Answerer, EncodedPrompt, Tokens
from llava_trainer.evaluation.questions import Question
from llava_trainer.model.loading import AS_DATA, PLAIN_ATTENTION


@contextmanager
def load_answerer(folder: Path, processor: Processor, device: str, dtype: torch.dtype) -> Iterator[Answerer]:
    """Load the model in ``folder`` by plain Auto classes; its memory is given back when the context is left."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, attn_implementation=PLAIN_ATTENTION, **AS_DATA
    )
    model = model.to(device).eval()
    # What the checkpoint's generation_config.json says must not mix with the spec: both models are asked alike.
    model.generation_config = GenerationConfig()
    tokens = Tokens(bos=processor.bos_token_id, eos=processor.eos_token_id, pad=processor.pad_token_id)
    try:
        yield Answerer(
            model=model,
            tokens=tokens,
            decode=lambda ids: processor.tokenizer.decode(ids, skip_special_tokens=True),
        )
    finally:
        # The caller's answerer is of no more use: its weights go, whoever still holds it.
        model.to("meta")
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def encode_question(question: Question, processor: Processor, folder: ImageFolder) -> EncodedPrompt:
    """A question as the model is fed; its images are only read when its turn comes."""
    ids = encode_prompt(question.turns, question.image_turns, processor, system=question.system)
    if not question.images:
        return EncodedPrompt(ids=ids, load_pixels=None)
    images = [folder.find(image) for image in question.images]
    return EncodedPrompt(
        ids=ids,
        load_pixels=lambda: torch.stack(
            [torch.from_numpy(pixel_values(open_image(image), processor)) for image in images]
        ),
    )
