"""An oracle for the memory plan: the real modules run on tensors without contents, and every storage is counted.

``SupervisedLoss`` over transformers' LLaVA and peft's adapters is built on the meta device, its parameters become fake
ones, and one forward and backward pass runs under a mode that sees each tensor come and go. Three things differ from a
run on a GPU, and are set right here:

- dropout: on a GPU it is ``native_dropout``, which keeps one byte a number; on a CPU it keeps the whole noise;
- gradients of parameters: DeepSpeed's ZeRO takes each away as soon as it is there, into buffers of its own, which this
  trace cannot see;
- what depends on values (is there one sample in each row) is answered with yes.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_api.memory import Workload
from llava_api.model_facts import ModelFacts
from llava_api.spec import Lora
from llava_trainer.model.attention import CAUSAL_SDPA, register_attention
from llava_trainer.model.learning import train_projector, train_whole
from llava_trainer.model.lora import add_adapter
from llava_trainer.model.objective import SupervisedLoss

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True, kw_only=True)
class Traced:
    """What was seen, in bytes."""

    weights: int
    """Of every parameter and buffer, before anything runs."""
    peak: int
    """Most that was held at once beyond them."""


@dataclass
class Ledger:
    """Bytes of all storages that live."""

    now: int = 0
    peak: int = 0
    known: set[int] = field(default_factory=set)

    def enter(self, value: object) -> None:
        """Count a tensor's storage, once, for as long as it lives."""
        # A meta tensor is a shape that somebody has written down.
        if not isinstance(value, torch.Tensor) or value.device.type == "meta":
            return
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, key, size)

    def leave(self, value: torch.Tensor) -> None:
        """Count a tensor's storage no longer: it is entered elsewhere."""
        storage = value.untyped_storage()
        self._leave(storage._cdata, storage.nbytes())

    def _leave(self, key: int, size: int) -> None:
        if key in self.known:
            self.known.discard(key)
            self.now -= size


class Watching(TorchDispatchMode):
    """Enters every tensor that an operation makes into a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return True
        made = func(*args, **(kwargs or {}))
        pytree.tree_map(self._ledger.enter, made)
        return made


def trace(model: ModelFacts, work: Workload) -> Traced:
    """Run one micro-batch of ``work`` through a LLaVA of this shape."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):
        module = build_module(model, work)
    ledger = Ledger()
    with fake, _dropout_of_a_gpu():
        _give_up_meta(module, fake)
        if work.method == "qlora":
            _quantize(module, work.double_quantization, ledger)
        for tensor in (*module.parameters(), *module.buffers()):
            ledger.enter(tensor)
        weights = ledger.now
        batch = _batch(model, work)
        with Watching(ledger):
            module(**batch).backward()
    return Traced(weights=weights, peak=ledger.peak - weights)


def build_module(model: ModelFacts, work: Workload) -> SupervisedLoss:
    """What the engine calls, as the method opens it."""
    register_attention()
    llava = LlavaForConditionalGeneration._from_config(
        _config(model), attn_implementation="eager" if work.eager else CAUSAL_SDPA, dtype=_DTYPES[work.number_bytes]
    )
    if work.method == "qlora":
        _use_linear4bit(llava.model.language_model.layers)
    tuned = llava
    beside = {"learns_projector": work.learns_projector, "learns_tower": work.learns_tower}
    if work.has_adapter:
        lora = Lora(rank=work.rank, alpha=2 * work.rank, dropout=work.dropout, targets=work.targets)
        tuned = add_adapter(llava, lora, **beside)
    elif work.method == "full":
        train_whole(llava, **beside)
    else:
        train_projector(llava)
    return SupervisedLoss(tuned, gradient_checkpointing=work.gradient_checkpointing).train()


def _config(model: ModelFacts) -> LlavaConfig:
    text, vision = model.language_model, model.vision_tower
    return LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=model.vocabulary, hidden_size=text.hidden, intermediate_size=text.intermediate,
            num_hidden_layers=text.layers, num_attention_heads=text.heads, num_key_value_heads=text.key_value_heads,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=vision.hidden, intermediate_size=vision.intermediate, num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads, image_size=model.image_size_px, patch_size=model.patch_size_px,
        ),
        image_token_id=0,
        vision_feature_layer=model.feature_layer[0],
        vision_feature_select_strategy=model.feature_strategy,
    )  # fmt: skip


def _give_up_meta(module: torch.nn.Module, fake: FakeTensorMode) -> None:
    """Make every tensor a fake one on the CPU; parameters that learn lose their gradient as soon as it is whole."""
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                learns = tensor.requires_grad
                part._parameters[name] = made = torch.nn.Parameter(_real_place(tensor.data, fake), requires_grad=learns)
                if learns:
                    made.register_post_accumulate_grad_hook(forget_gradient)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _real_place(buffer, fake)


def _real_place(tensor: torch.Tensor, fake: FakeTensorMode) -> torch.Tensor:
    return fake.fake_tensor_converter.from_meta_and_device(fake, tensor, torch.device("cpu"))


def forget_gradient(parameter: torch.Tensor) -> None:
    """Hook that takes a gradient away as soon as it is whole, as ZeRO does."""
    parameter.grad = None


def _use_linear4bit(layers: torch.nn.Module) -> None:
    """Put bitsandbytes' modules in the place of plain ones, so that peft chooses its own that go with them."""
    linears = [(name, part) for name, part in layers.named_modules() if isinstance(part, torch.nn.Linear)]
    for name, linear in linears:
        parent, _, attribute = name.rpartition(".")
        replacement = Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=linear.weight.dtype)
        replacement.requires_grad_(False)
        setattr(layers.get_submodule(parent), attribute, replacement)


def _quantize(module: SupervisedLoss, double: bool, ledger: Ledger) -> None:
    """Give these modules weights of the form that bitsandbytes makes: packed numbers, and their scales.

    Its own ``Params4bit`` cannot hold a tensor without contents; its multiplication, forward and backward, is real.
    """
    for part in module.modules():
        if isinstance(part, Linear4bit):
            shape = torch.Size((part.out_features, part.in_features))
            packed = torch.empty(shape.numel() // 2, 1, dtype=torch.uint8)
            state = _quant_state(shape, double, part.compute_dtype)
            scales = (state.absmax, *((state.state2.absmax,) if double else ()))
            for tensor in (packed, *scales):
                ledger.enter(tensor)
            part.weight = None
            part.forward = partial(_multiply, packed=packed, state=state)


def _quant_state(shape: torch.Size, double: bool, dtype: torch.dtype) -> QuantState:
    blocks = shape.numel() // 64
    code = torch.empty(16)
    if not double:
        return QuantState(torch.empty(blocks), shape, code, 64, "nf4", dtype)
    inner = QuantState(torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32)
    absmax = torch.empty(blocks, dtype=torch.uint8)
    return QuantState(absmax, shape, code, 64, "nf4", dtype, offset=torch.empty(()), state2=inner)


def _multiply(x: torch.Tensor, *, packed: torch.Tensor, state: QuantState) -> torch.Tensor:
    return matmul_4bit(x, packed, quant_state=state)


@contextmanager
def _dropout_of_a_gpu() -> Iterator[None]:
    def dropout(value: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        assert not inplace
        return torch.native_dropout(value, p, True)[0] if training and p else value

    original, functional.dropout = functional.dropout, dropout
    try:
        yield
    finally:
        functional.dropout = original


def _batch(model: ModelFacts, work: Workload) -> dict[str, torch.Tensor | None]:
    shape = (work.rows, work.length)
    side = model.image_size_px
    pixels = torch.empty(work.pictures, 3, side, side, dtype=_DTYPES[work.number_bytes])
    return {
        "input_ids": torch.empty(shape, dtype=torch.int64),
        "labels": torch.empty(shape, dtype=torch.int64),
        "position_ids": torch.empty(shape, dtype=torch.int64) if work.masked and not work.eager else None,
        "pixel_values": pixels if work.pictures else None,
        "image_places": torch.empty(work.pictures * model.tokens_per_image, dtype=torch.int64),
        "predicting": torch.empty(work.supervised, dtype=torch.int64),
    }
