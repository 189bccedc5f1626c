"""What one training process is asked to hold: the choices of a spec that memory depends on."""

from dataclasses import dataclass
from typing import Literal

from llava_api.spec import LORA_TARGETS, LoraTarget

FLOAT = 4
"""Bytes of a number in fp32."""

Method = Literal["projector", "lora", "qlora", "full"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One process's share of a phase of training."""

    method: Method
    """``projector`` is phase 1."""
    rows: int
    """Sequences that the process holds at a time: the per-device batch."""
    length: int
    """Tokens of the longest of them, image tokens included; the others are filled up to it."""
    pictures: int
    """In the whole micro-batch."""
    supervised: int
    """Tokens that are learned, in the whole micro-batch."""
    world_size: int = 1
    learns_projector: bool = True
    """Always in phase 1."""
    learns_tower: bool = False
    rank: int = 128
    dropout: float = 0.05
    targets: tuple[LoraTarget, ...] = LORA_TARGETS
    number_bytes: Literal[2, 4] = 2
    """2 in bf16, 4 in fp32."""
    double_quantization: bool = True
    gradient_checkpointing: bool = True
    masked: bool = False
    """Whether sdpa is given a mask, as it is where rows are packed. Rows of one sample each need none, and neither do
    flash-attn and torch's varlen_attn."""
    eager: bool = False
    """Whether attention is written out, in the tower too, and its weights are tensors that the backward pass needs."""
    on_gpu: bool = True
    zero_stage: int = 2
    offload_optimizer: bool = False
    offload_parameters: bool = False
    overlap_communication: bool = False
    """Whether gradients travel while others are computed; from ZeRO stage 2 on."""
    answer_tokens: int = 0
    """Of the longest prompt and its answer, where held-out questions are answered while it trains; 0 where none is."""

    @property
    def tokens(self) -> int:
        """Positions in the micro-batch, filling included."""
        return self.rows * self.length

    @property
    def has_adapter(self) -> bool:
        """Whether LoRA matrices are trained."""
        return self.method in ("lora", "qlora")
