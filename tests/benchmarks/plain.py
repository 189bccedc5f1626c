"""The plain way: transformers' Trainer with PEFT, padded batches, the head over every position.

Baseline of the benchmarks and oracle of the loop. It shares no code with the trainer: what it learns from comes in as
token ids, labels and pixels, and what it does with them is transformers' business.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import LlavaForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

PlainItem = Mapping[str, Any]
"""``input_ids`` and ``labels``, lists of the same length, and ``pixel_values``, a tensor (3, H, W) or None."""

_IGNORED = -100
_LAYERS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj"
_PROJECTOR = "multi_modal_projector"
_TOWER = "vision_tower"
_DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class PlainSettings:
    """What Trainer is asked for."""

    learning_rate: float
    projector_learning_rate: float
    per_device_batch: int
    accumulation: int
    pad_token_id: int
    warmup_ratio: float = 0.03
    scheduler: str = "cosine"
    weight_decay: float = 0.0
    gradient_checkpointing: bool = False
    bf16: bool = False
    loader_processes: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    tower_learning_rate: float = 0.0
    seed: int = 42
    max_steps: int = -1
    """Stop after so many optimiser steps; -1: at the end of the last epoch."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of TrainingArguments, such as ``use_cpu=False``."""


@dataclass(frozen=True, kw_only=True)
class PlainStep:
    """What Trainer logged about one optimiser step."""

    loss: float
    """Per supervised token of the step."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    """Of the adapter."""
    began_s: float
    """Clock of ``time.perf_counter``: when the step before it ended, or Trainer began to ask for batches."""
    ended_s: float
    cpu_s: float
    """Processor time between the two, of all threads."""


def add_plain_adapter(
    model: LlavaForConditionalGeneration, *, rank: int, alpha: float, dropout: float = 0.0
) -> PeftModel:
    """LoRA on every projection of the language model, and the projector trained whole."""
    return get_peft_model(
        model,
        LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_LAYERS, modules_to_save=[_PROJECTOR]
        ),
    )


def train_plainly(
    tuned: nn.Module, load: Callable[[int], PlainItem], orders: Sequence[Sequence[int]], settings: PlainSettings
) -> list[PlainStep]:
    """Train ``tuned`` in place, alone and without DeepSpeed.

    Args:
        tuned: what its parameters' ``requires_grad`` says learns.
        load: item by its number; called when a batch is made, as from a lazy dataset.
        orders: for each epoch the items' numbers in the order in which they are seen.
        settings: what Trainer is asked for.

    Returns:
        One entry for each optimiser step.
    """
    steps: list[PlainStep] = []
    with _alone(), tempfile.TemporaryDirectory() as folder:
        trainer = _PlannedTrainer(
            model=tuned,
            args=_arguments(folder, len(orders), settings),
            train_dataset=_Items(load, len(orders[0])),
            data_collator=lambda items: pad(items, settings.pad_token_id),
            optimizers=(_optimizer(tuned, settings), None),
            callbacks=[_Recorder(steps)],
        )
        trainer.orders = orders
        trainer.train()
    return steps


def _arguments(folder: str, epochs: int, settings: PlainSettings) -> TrainingArguments:
    chosen: dict[str, Any] = {
        "output_dir": folder,
        "num_train_epochs": epochs,
        "max_steps": settings.max_steps,
        "per_device_train_batch_size": settings.per_device_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_ratio,
        "lr_scheduler_type": settings.scheduler,
        "activation_checkpointing": settings.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if settings.gradient_checkpointing else None,
        "bf16": settings.bf16,
        "dataloader_num_workers": settings.loader_processes,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": settings.seed,
    }
    return TrainingArguments(**chosen | dict(settings.extra))


class _PlannedTrainer(Trainer):
    """Trainer that sees the items in a given order, so that its batches are somebody else's."""

    orders: Sequence[Sequence[int]] = ()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return _Planned(self.orders)


class _Planned(Sampler):
    """One order after the other."""

    def __init__(self, orders: Sequence[Sequence[int]]) -> None:
        self._orders = orders
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self._orders[self._epoch])

    def __len__(self) -> int:
        return len(self._orders[0])


class _Items(Dataset):
    """Items, loaded when they are needed."""

    def __init__(self, load: Callable[[int], PlainItem], count: int) -> None:
        self._load = load
        self._count = count

    def __getitem__(self, index: int) -> PlainItem:
        return self._load(index)

    def __len__(self) -> int:
        return self._count


class _Recorder(TrainerCallback):
    """Keeps what Trainer logs about every step."""

    def __init__(self, steps: list[PlainStep]) -> None:
        self._steps = steps
        self._began_s = self._began_cpu_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Called by Trainer when everything is set up."""
        self._began_s, self._began_cpu_s = time.perf_counter(), time.process_time()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **others: Any) -> None:
        """Called by Trainer after every step, and once more at the end with figures of the whole."""
        if logs and "grad_norm" in logs:
            ended_s, ended_cpu_s = time.perf_counter(), time.process_time()
            self._steps.append(
                PlainStep(
                    loss=float(logs["loss"]),
                    grad_norm=float(logs["grad_norm"]),
                    learning_rate=float(logs["learning_rate"]),
                    began_s=self._began_s,
                    ended_s=ended_s,
                    cpu_s=ended_cpu_s - self._began_cpu_s,
                )
            )
            self._began_s, self._began_cpu_s = ended_s, ended_cpu_s


def _optimizer(tuned: nn.Module, settings: PlainSettings) -> torch.optim.Optimizer:
    """AdamW with a learning rate of its own for the projector; norms and biases do not decay, as in LLaVA's trainer."""
    learning = [(name, parameter) for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    groups = []
    rates = {
        "": settings.learning_rate, _PROJECTOR: settings.projector_learning_rate, _TOWER: settings.tower_learning_rate
    }  # fmt: skip
    for part, rate in rates.items():
        for is_spared, decay in ((False, settings.weight_decay), (True, 0.0)):
            parameters = [
                parameter
                for name, parameter in learning
                if _part_of(name) == part and (name.endswith(".bias") or "norm" in name.split(".")[-2]) is is_spared
            ]
            if parameters:
                groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.epsilon)


def _part_of(name: str) -> str:
    return next((part for part in (_PROJECTOR, _TOWER) if part in name), "")


def pad(items: Sequence[PlainItem], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Fill up to the longest on the right; without any image the model is called without pixels."""

    def fill(name: str, value: int) -> torch.Tensor:
        rows = [torch.tensor(item[name]) for item in items]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    pixels = [item["pixel_values"] for item in items if item["pixel_values"] is not None]
    ones = [torch.ones(len(item["input_ids"]), dtype=torch.int64) for item in items]
    batch = {
        "input_ids": fill("input_ids", pad_token_id),
        "labels": fill("labels", _IGNORED),
        "attention_mask": nn.utils.rnn.pad_sequence(ones, batch_first=True),
    }
    return batch | ({"pixel_values": torch.stack(pixels)} if pixels else {})


@contextmanager
def _alone() -> Iterator[None]:
    """Hide from accelerate that this process may be one of a training."""
    hidden = {name: os.environ.pop(name) for name in _DISTRIBUTED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
