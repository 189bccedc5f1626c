"""Which weights bitsandbytes quantises, and how: the language model's linear layers, and nothing else."""

from typing import Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from llava_api.spec import Quantization
from llava_trainer.model.layout import PROJECTOR

Load = Literal["none", "8bit", "4bit"]
UNQUANTIZED = ("model.vision_tower", f"model.{PROJECTOR}", "lm_head")
"""Whole names: bitsandbytes passes over others without a word. Naming any takes away the exemption of the head."""


def train_in_nf4(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How QLoRA trains: 4 bits, as ``quantization`` says."""
    compute = {"auto": dtype, "bf16": torch.bfloat16, "fp32": torch.float32}[quantization.compute_dtype]
    return _nf4(compute, double=quantization.double)


def answer_in(load: Load, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How a model is loaded to answer; None where its weights stay as they are.

    8 bits are LLM.int8() (Dettmers et al. 2022) with bitsandbytes' own threshold for outliers, 4 bits NF4 with double
    quantisation (Dettmers et al. 2023): what LLaVA's own load_8bit and load_4bit mean.
    """
    if load == "none":
        return None
    if load == "4bit":
        return _nf4(dtype, double=True)
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(UNQUANTIZED))


def _nf4(compute: torch.dtype, *, double: bool) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=list(UNQUANTIZED),
    )


def count_parameter_bytes(model: nn.Module) -> int:
    """Bytes that a model's weights take, as they are stored; what quantisation keeps beside them is not counted."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
