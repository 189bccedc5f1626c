"""Real samples, as the model is fed, on which a merge is proven."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice

import torch

from llava_api.run_config import RunConfig
from llava_trainer.data.encode import Encoded, ImageCutError, encode
from llava_trainer.data.image_folder import training_images
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample, read_samples
from llava_trainer.merging.lanes import Batch

NUM_SAMPLES = 3
"""Each costs four passes of the model in fp32 on a CPU: minutes for a 7B model."""
MAX_TOKENS = 1024
"""Longer samples lose their end: an image and a first answer fit, and more tokens would prove nothing more."""


def proof_batches(config: RunConfig, processor: Processor) -> list[Batch]:
    """A few held-out samples as the model is fed, one a batch; from the training set if none is held out."""
    held_out, trained_on = config.volume.validation_file, config.volume.train_file
    samples = chain(read_samples(held_out), read_samples(trained_on))
    max_tokens = min(max(MAX_TOKENS, 2 * processor.tokens_per_image), config.training.max_length)
    encoded = _encode_all(samples, processor, max_tokens)
    return [_batch(one, config, processor) for one in islice(encoded, NUM_SAMPLES)]


def _encode_all(samples: Iterable[Sample], processor: Processor, max_length: int) -> Iterator[Encoded]:
    for sample in samples:
        try:
            yield encode(sample, processor, max_length)
        except ImageCutError:  # some other sample will do
            continue


def _batch(encoded: Encoded, config: RunConfig, processor: Processor) -> Batch:
    ids = torch.tensor([encoded.input_ids])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if encoded.images:
        folder = training_images(config)
        images = [pixel_values(open_image(folder.find(image)), processor) for image in encoded.images]
        batch["pixel_values"] = torch.stack([torch.from_numpy(pixels) for pixels in images])
    return batch
