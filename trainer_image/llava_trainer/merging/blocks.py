"""A LLaVA without weights, cut into blocks that are filled from files one at a time: layers, embedding, head, ...

A block is a decoder layer, a layer of the vision tower, or a module beside them; together they hold every weight.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.model.layout import hub_name
from llava_trainer.model.loading import PLAIN_ATTENTION
from llava_trainer.tensors.lora import read_exact
from llava_trainer.tensors.stored import StoredTensor

_PEFT_PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer."
_COPY = ".modules_to_save.default."
_ORIGINAL = ".original_module."
_LORA = ".lora_"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A parameter of a block."""

    owner: nn.Module
    name: str
    """Its name in ``owner``."""
    hub: str | None
    """Hub name of the tensor that it is; None for a LoRA matrix."""
    is_updated: bool
    """Whether PEFT adds a matrix product to it."""
    stored: StoredTensor
    """Where its values lie."""
    shape: tuple[int, ...]

    @property
    def value(self) -> torch.Tensor:
        """What stands there now."""
        parameter = self.owner._parameters[self.name]
        assert parameter is not None
        return parameter.data


@dataclass(frozen=True, kw_only=True)
class Block:
    """A module that runs as one, and where its weights lie."""

    module: nn.Module
    slots: tuple[Slot, ...]

    def fill(self) -> None:
        """Read its weights, in fp32.

        Raises:
            StageError: InvalidModel; a tensor is of another shape than the model's.
        """
        for slot in self.slots:
            if slot.stored.shape != slot.shape:
                raise StageError(
                    Reason.INVALID_MODEL,
                    f"{slot.stored.file}: {slot.stored.name} is {slot.stored.shape}, but config.json makes it "
                    f"{slot.shape}",
                )
            slot.owner._parameters[slot.name] = nn.Parameter(read_exact(slot.stored), requires_grad=False)

    def merge(self) -> None:
        """Have PEFT's own layers merge what they add; the LoRA matrices are given back."""
        for module in self.module.modules():
            if isinstance(module, LoraLayer):
                module.merge()
        self._empty([slot for slot in self.slots if slot.hub is None])

    def empty(self) -> None:
        """Give its weights back."""
        self._empty(self.slots)

    def _empty(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            empty = torch.empty(slot.shape, device="meta")
            slot.owner._parameters[slot.name] = nn.Parameter(empty, requires_grad=False)


def build_empty(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """A model of transformers' own without weights, but with what it computes from its configuration."""
    with init_empty_weights(include_buffers=False):
        llava = AutoModelForImageTextToText.from_config(
            config, attn_implementation=PLAIN_ATTENTION, dtype=torch.float32
        )
    assert type(llava) is LlavaForConditionalGeneration
    return llava.eval()


def cut_into_blocks(
    model: nn.Module, llava: LlavaForConditionalGeneration, find: Callable[[str, str | None], StoredTensor]
) -> tuple[Block, ...]:
    """Cut a model into blocks, in the order in which a forward pass comes to them.

    Args:
        model: the LLaVA, or PEFT's around it.
        llava: the LLaVA.
        find: where a parameter's values lie, by its name in the model and its hub name (None for a LoRA matrix).
    """
    embedding = llava.get_input_embeddings()
    modules = sorted(_cut(llava), key=lambda module: module is not embedding)
    names = {id(module): name for name, module in model.named_modules()}
    slots = [tuple(_slots(module, names[id(module)], find)) for module in modules]
    held = {id(slot.owner._parameters[slot.name]) for one in slots for slot in one}
    loose = [name for name, one in model.named_parameters() if _ORIGINAL not in name and id(one) not in held]
    assert not loose, f"{loose[0]} is in no block"
    return tuple(Block(module=module, slots=one) for module, one in zip(modules, slots, strict=True))


def hub_of(name: str) -> str | None:
    """Hub name of a parameter by its name in a LLaVA or in PEFT's model around one; None for a LoRA matrix."""
    if _LORA in name:
        return None
    return hub_name(name.removeprefix(_PEFT_PREFIX).replace(_BASE_LAYER, ".").replace(_COPY, "."))


def tied_names(llava: LlavaForConditionalGeneration) -> Mapping[str, str]:
    """Hub names of tensors that are another one's twin and may be missing in files, with that one's."""
    return {hub_name(name): hub_name(source) for name, source in llava.all_tied_weights_keys.items()}


def _cut(module: nn.Module) -> Iterator[nn.Module]:
    """Modules with weights that hold no list of layers; the layers of lists one by one."""
    if any(isinstance(part, nn.ModuleList) for part in module.modules()):
        for child in module.children():
            yield from _cut(child)
    elif next(module.parameters(), None) is not None:
        yield module


def _slots(module: nn.Module, prefix: str, find: Callable[[str, str | None], StoredTensor]) -> Iterator[Slot]:
    for name, parameter in module.named_parameters(prefix=prefix, remove_duplicate=False):
        if _ORIGINAL in name:
            # What PEFT has a trained copy of does not run.
            continue
        owner, _, leaf = name.removeprefix(f"{prefix}.").rpartition(".")
        hub = hub_of(name)
        yield Slot(
            owner=module.get_submodule(owner), name=leaf, hub=hub, is_updated=_BASE_LAYER in name and leaf == "weight",
            stored=find(name, hub), shape=tuple(parameter.shape),
        )  # fmt: skip
