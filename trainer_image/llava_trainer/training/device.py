"""What the GPU at hand cannot do: said before the model is loaded, where nobody could know it earlier."""

from collections.abc import Sequence

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.model.flash import find_flash_fault, has_flash_attention
from llava_trainer.training.phase import Phase

Capability = tuple[int, int]
"""NVIDIA's compute capability: major, minor."""

AMPERE: Capability = (8, 0)
"""The oldest that computes in bf16, and that flash-attn 2 runs on."""


def check_device(phase: Phase, device: torch.device) -> None:
    """Make sure that a process's device can do what its phase asks for.

    Raises:
        StageError: UnsupportedDevice, naming the setting to change.
    """
    if device.type != "cuda":
        return
    fault = find_fault(
        phase,
        torch.cuda.get_device_capability(device),
        built_for=torch.cuda.get_arch_list(),
        has_flash=has_flash_attention(),
    )
    if fault is None and phase.training.attention == "flash_attention_2":
        fault = find_flash_refusal(device)
    if fault is not None:
        raise StageError(Reason.UNSUPPORTED_DEVICE, f"{torch.cuda.get_device_name(device)}: {fault}")


def find_flash_refusal(device: torch.device) -> str | None:
    """What stands against flash-attn on this device, by a call of it; None if nothing does."""
    fault = find_flash_fault(device)
    if fault is None:
        return None
    return (
        f"training.attention is flash_attention_2, and flash-attn does not run here ({fault}): set it to sdpa or auto, "
        "or build the image with this GPU's architecture in FLASH_ATTN_ARCHS"
    )


def find_fault(phase: Phase, capability: Capability, *, built_for: Sequence[str], has_flash: bool) -> str | None:
    """What stands against training on a GPU of this compute capability; None if nothing does.

    Args:
        phase: what is asked for.
        capability: of the GPU.
        built_for: architectures that this PyTorch is built for, like sm_75.
        has_flash: whether flash-attn is installed.
    """
    has = f"compute capability {capability[0]}.{capability[1]}"
    oldest = min((_capability_of(name) for name in built_for if name.startswith("sm_")), default=capability)
    if capability < oldest:
        return f"{has} is older than what this image's PyTorch is built for ({oldest[0]}.{oldest[1]}): take newer GPUs"
    if phase.training.attention == "flash_attention_2" and not has_flash:
        return "training.attention is flash_attention_2, but flash-attn is not in this image: set it to sdpa or auto"
    if phase.training.attention == "flash_attention_2" and phase.training.precision == "fp32":
        return (
            "training.attention is flash_attention_2, which computes in bf16, and training.precision is fp32: set "
            "attention to sdpa, or precision to bf16 on GPUs of compute capability 8.0 or more"
        )
    if capability >= AMPERE:
        return None
    if phase.training.precision != "fp32":
        return f"training.precision is {phase.training.precision}, and {has} has no bf16: set it to fp32"
    return None


def _capability_of(architecture: str) -> Capability:
    """``sm_75`` as (7, 5), ``sm_100a`` as (10, 0)."""
    digits = "".join(filter(str.isdigit, architecture))
    return int(digits[:-1]), int(digits[-1])
