"""A LoRA adapter in PEFT's layout, as far as merging must understand it.

PEFT is not asked here: it is the oracle that the merged model is proven against (see ``proof``). Whatever
adapter_config.json asks for beyond plain LoRA is refused by name, never passed over.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.model.layout import PROJECTOR, hub_name, module_name

_PREFIX = "base_model.model."
_LORA_A = ".lora_A.weight"
_LORA_B = ".lora_B.weight"

# Settings that say nothing about the merged weights, or that are read below.
_UNDERSTOOD = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_alpha", "lora_dropout", "megatron_core",
        "modules_to_save", "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type",
        "layers_pattern",
    }
)  # fmt: skip
# Settings whose harmless values are not simply empty: these initialisations leave the base's weights alone.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
}


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """Names, in the adapter's file, of the two matrices of one update: B (out x rank) times A (rank x in)."""

    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter does to the base's tensors, by hub name."""

    file: Path
    scale: float
    """alpha / rank."""
    targets: str | tuple[str, ...]
    """PEFT's ``target_modules``: one pattern for the whole module name, or endings of it."""
    pairs: dict[str, LoraPair]
    """Tensors that get an update."""
    replaced: dict[str, str]
    """Tensors that were trained whole, and their names in the adapter's file."""

    def targets_tensor(self, hub: str) -> bool:
        """Whether the adapter was made to update the tensor with this hub name."""
        if not hub.endswith(".weight"):
            return False
        module = module_name(hub).removesuffix(".weight")
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, module) is not None
        return any(module == ending or module.endswith(f".{ending}") for ending in self.targets)

    def read(self, name: str) -> torch.Tensor:
        """One tensor of the adapter's file, in fp32 and in memory of its own."""
        with safe_open(self.file, framework="pt") as tensors:
            # A copy: products of the same numbers differ in their last bits with the alignment of their memory.
            tensor: torch.Tensor = tensors.get_tensor(name)
            return tensor.to(torch.float32, copy=True)

    def update(self, pair: LoraPair) -> torch.Tensor:
        """The update B A x alpha / rank, in fp32; the order of operations is PEFT's, so that the bits agree."""
        return (self.read(pair.b) @ self.read(pair.a)).mul_(self.scale)


def read_adapter(folder: Path) -> Adapter:
    """Read what the adapter in ``folder`` does.

    Raises:
        StageError: it is incomplete, holds tensors that nothing uses, or asks for more than plain LoRA.
    """
    file = folder / "adapter_model.safetensors"
    config_file = folder / "adapter_config.json"
    for path in (config_file, file):
        if not path.is_file():
            raise _mismatch(f"{path} is missing: training did not leave a whole adapter")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    _refuse_unknown_settings(config)
    with safe_open(file, framework="pt") as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    saved_modules = tuple(config.get("modules_to_save") or ())
    pairs = _pair_up(shapes, config["r"])
    replaced = _find_replaced(shapes, saved_modules)
    targets = config["target_modules"]
    return Adapter(
        file=file,
        scale=config["lora_alpha"] / config["r"],
        targets=targets if isinstance(targets, str) else tuple(targets),
        pairs=pairs,
        replaced=replaced,
    )


def _refuse_unknown_settings(config: dict[str, Any]) -> None:
    for name, value in config.items():
        if name in _PLAIN:
            # "is"-like comparison by type too: 1 == True would let a number pass for a switch.
            if not any(type(value) is type(plain) and value == plain for plain in _PLAIN[name]):
                raise _mismatch(f"adapter_config.json: {name} is {value!r}, and only {_PLAIN[name]} can be merged")
        elif name not in _UNDERSTOOD and value:
            raise _mismatch(f"adapter_config.json: {name} is {value!r}, which merging does not know how to apply")


def _pair_up(shapes: dict[str, tuple[int, ...]], rank: int) -> dict[str, LoraPair]:
    pairs = {}
    for name in shapes:
        if not name.endswith(_LORA_A):
            continue
        pair = LoraPair(a=name, b=name.removesuffix(_LORA_A) + _LORA_B)
        if pair.b not in shapes:
            raise _mismatch(f"the adapter holds {pair.a} without {pair.b}")
        if shapes[pair.a][0] != rank or shapes[pair.b][1] != rank:
            raise _mismatch(
                f"{pair.a} is {shapes[pair.a]} and {pair.b} is {shapes[pair.b]}: B must have as many columns and A as "
                f"many rows as adapter_config.json's r, which is {rank}"
            )
        pairs[hub_name(_bare(name).removesuffix(_LORA_A) + ".weight")] = pair
    lone = [name for name in shapes if name.endswith(_LORA_B) and name.removesuffix(_LORA_B) + _LORA_A not in shapes]
    if lone:
        raise _mismatch(f"the adapter holds {lone[0]} without its lora_A")
    if not pairs:
        raise _mismatch("the adapter holds no LoRA matrices")
    return pairs


def _find_replaced(shapes: dict[str, tuple[int, ...]], modules: tuple[str, ...]) -> dict[str, str]:
    replaced = {}
    for name in shapes:
        if name.endswith((_LORA_A, _LORA_B)):
            continue
        if not any(f".{module}." in name for module in modules):
            raise _mismatch(f"the adapter holds {name}, which belongs to no module of modules_to_save {list(modules)}")
        replaced[hub_name(_bare(name))] = name
    if not any(name.startswith(f"{PROJECTOR}.") for name in replaced):
        raise _mismatch(f"the adapter holds no {PROJECTOR} tensor: the trained projector was not saved")
    return replaced


def _bare(name: str) -> str:
    if not name.startswith(_PREFIX):
        raise _mismatch(f"the adapter holds {name}, whose name does not begin with {_PREFIX}")
    return name.removeprefix(_PREFIX)


def _mismatch(message: str) -> StageError:
    return StageError(Reason.MERGE_MISMATCH, message)
