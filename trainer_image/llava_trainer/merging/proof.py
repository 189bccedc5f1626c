"""Proof that what was merged computes what base and adapter compute, with PEFT as the oracle.

Comparing the logits of base + adapter with those of a merged bfloat16 model proves little: rounding alone moves them
by a tenth or two, far more than a layer that was missed. So rounding is taken out of every comparison:

1. base + adapter in fp32 against PEFT's own merge of them in fp32: logits agree up to summation order;
2. every tensor on the disk against that merge, rounded to the merged number format: bit for bit;
3. that merge, once rounded, against the folder as a server loads it (plain Auto classes): logits agree again.

Without an adapter there is nothing for PEFT to merge, and the first step is empty: the base with the trained tensors
put in their places is the reference then. What rounding does to the logits is reported beside it. One model is held at
a time, in fp32.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.data.encode import Encoded, ImageCutError, encode
from llava_trainer.data.image_folder import training_images
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.model_config import load_config
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample, read_samples
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import kept_projector_dir
from llava_trainer.merging.recipes import find_tensors
from llava_trainer.model.layout import hub_name, is_derived
from llava_trainer.model.learning import trained_whole
from llava_trainer.model.loading import AS_DATA, PLAIN_ATTENTION, load_model, load_trained, load_tuned
from llava_trainer.model.projector import load_projector
from llava_trainer.tensors.stored import StoredTensor

LOGIT_TOLERANCE = 1e-4
"""Largest difference of two fp32 logits, in units of the largest logit (at least 1): sums in another order."""
_SUM_NOISE = 4 * torch.finfo(torch.float32).eps
"""Differences of a matrix product's sums, in units of the largest weight; see ``_differs``."""

NUM_SAMPLES = 3
"""Each costs four passes of the model in fp32 on a CPU: minutes for a 7B model."""
MAX_TOKENS = 1024
"""Longer samples lose their end: an image and a first answer fit, and more tokens would prove nothing more."""

Batch = Mapping[str, torch.Tensor]
"""Keyword arguments of a forward pass: input_ids, attention_mask and, with images, pixel_values."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found equal, and how nearly."""

    max_logit_difference: float
    """Largest difference of fp32 logits that is not rounding: base + adapter against merged."""
    max_rounding_difference: float
    """Largest difference of logits that rounding the weights to the merged number format makes."""
    num_tensors: int
    """Tensors on the disk that were found equal to PEFT's, bit for bit."""
    num_samples: int


def prove_merge(
    load_reference: Callable[[], PeftModel | LlavaForConditionalGeneration],
    merged_dir: Path,
    batches: Sequence[Batch],
    *,
    on_tensor: Callable[[int], None] = lambda done: None,
) -> Proof:
    """Prove that ``merged_dir`` computes what was trained.

    Args:
        load_reference: loads the base with what was trained, in fp32 on the CPU; a PeftModel is merged by PEFT.
        merged_dir: what was merged, with everything that a server needs.
        batches: real samples to compare logits on; at least one.
        on_tensor: told the number of tensors compared after each.

    Raises:
        StageError: MergeMismatch, with what differs and by how much; or base or adapter cannot be loaded.
    """
    assert batches, "nothing to compare logits on"
    tuned = load_reference()
    wanted = _logits(tuned, batches)
    updated: frozenset[str] = frozenset()
    merged: nn.Module = tuned
    if isinstance(tuned, PeftModel):
        updated = _updated_tensors(tuned)
        merged = tuned.merge_and_unload()
    exact = _logits(merged, batches)
    merge_difference = _compare_logits("PEFT's merge and base + adapter", exact, wanted)
    del tuned, wanted
    num_tensors = _compare_weights(merged, merged_dir, updated, on_tensor)
    rounded = _logits(merged, batches)
    rounding = _largest_difference(rounded, exact)
    del merged, exact
    served = _logits(_load_served(merged_dir), batches)
    serving_difference = _compare_logits("the merged model and what was trained", served, rounded)
    return Proof(
        max_logit_difference=max(merge_difference, serving_difference),
        max_rounding_difference=rounding,
        num_tensors=num_tensors,
        num_samples=sum(len(batch["input_ids"]) for batch in batches),
    )


def load_reference(config: RunConfig) -> PeftModel | LlavaForConditionalGeneration:
    """The base with what was trained, in fp32: PEFT's own where there is an adapter.

    Raises:
        StageError: base or what was trained cannot be loaded, or do not belong together.
    """
    volume, projector_dir = config.volume, kept_projector_dir(config)
    match config.training.method:
        case "full":
            learned = trained_whole(config.training, load_config(config.model_dir))
            return load_trained(
                config.model_dir, volume.weights_dir, torch.float32, "cpu", learned=learned, projector_dir=projector_dir
            )
        case "none" if config.model.adapter is not None:
            return load_tuned(config.model_dir, volume.given_adapter_dir, torch.float32, "cpu")
        case "none":
            llava = load_model(config.model_dir, torch.float32, "cpu")
            load_projector(llava, volume.projector_dir)
            return llava
        case _:
            return load_tuned(config.model_dir, volume.adapter_dir, torch.float32, "cpu", projector_dir=projector_dir)


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


def _load_served(merged_dir: Path) -> nn.Module:
    model, found = AutoModelForImageTextToText.from_pretrained(
        merged_dir, dtype=torch.float32, attn_implementation=PLAIN_ATTENTION, output_loading_info=True, **AS_DATA
    )
    trouble = {
        "missing": sorted(found["missing_keys"]),
        "unexpected": sorted(name for name in found["unexpected_keys"] if not is_derived(name)),
    }
    for kind, names in trouble.items():
        if names:
            raise _mismatch(f"loading {merged_dir} as a server does finds {len(names)} {kind} tensors, like {names[0]}")
    served: nn.Module = model.eval()
    return served


@torch.inference_mode()
def _logits(model: nn.Module, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """Logits of each batch at its real positions, (tokens, vocabulary)."""
    return [model(**batch, use_cache=False).logits[batch["attention_mask"].bool()] for batch in batches]


def _largest_difference(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(first, second, strict=True))


def _compare_logits(what: str, found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    difference = _largest_difference(found, wanted)
    largest = max(logits.abs().max().item() for logits in wanted)
    allowed = LOGIT_TOLERANCE * max(1.0, largest)
    if not difference <= allowed:  # also when it is not a number
        raise _mismatch(f"logits of {what} differ by {difference:.3g} in fp32, and {allowed:.3g} is allowed")
    return difference


def _updated_tensors(tuned: PeftModel) -> frozenset[str]:
    """Hub names of the tensors that PEFT will change by a matrix product."""
    prefix = "base_model.model."
    return frozenset(
        hub_name(f"{name.removeprefix(prefix)}.weight")
        for name, module in tuned.named_modules()
        if hasattr(module, "get_delta_weight")
    )


def _compare_weights(
    merged: nn.Module, merged_dir: Path, updated: frozenset[str], on_tensor: Callable[[int], None]
) -> int:
    """Compare each tensor on the disk with PEFT's, and round PEFT's in place; returns how many there are."""
    files = {name: tensor for name, tensor in find_tensors(merged_dir).items() if not is_derived(name)}
    parameters = {hub_name(name): parameter for name, parameter in merged.named_parameters()}
    if files.keys() != parameters.keys():
        odd = sorted(files.keys() ^ parameters.keys())
        raise _mismatch(f"{len(odd)} tensors are either not in {merged_dir} or not in the model, like {odd[0]}")
    for done, (name, parameter) in enumerate(parameters.items(), start=1):
        _compare_tensor(name, files[name], parameter.data, may_vary=name in updated)
        parameter.data.copy_(parameter.data.to(files[name].dtype))
        on_tensor(done)
    return len(parameters)


def _compare_tensor(name: str, file: StoredTensor, exact: torch.Tensor, *, may_vary: bool) -> None:
    found = file.read()
    if found.shape != exact.shape:
        raise _mismatch(f"{name} is {tuple(found.shape)} on the disk and {tuple(exact.shape)} in what was trained")
    different = _differs(found, exact, _SUM_NOISE * exact.abs().max().item() if may_vary else 0.0)
    if different:
        largest = (found.float() - exact).abs().max().item()
        raise _mismatch(
            f"{name} differs from what was trained in {different} of {found.numel()} values, by {largest:.3g} at most"
        )


def _differs(found: torch.Tensor, exact: torch.Tensor, noise: float) -> int:
    """How many values of ``found`` are not the rounded value of anything within ``noise`` of ``exact``.

    Rounding keeps order, so that those are exactly the values between the two rounded ends. Noise is what the order
    of a matrix product's sums may change; without it (0) the comparison is bit for bit.
    """
    low, high = (exact - noise).to(found.dtype), (exact + noise).to(found.dtype)
    return int((~((low <= found) & (found <= high))).sum())


def _mismatch(message: str) -> StageError:
    return StageError(Reason.MERGE_MISMATCH, message)
