"""What each rank keeps of the optimiser, by parameter name: the one place that knows the inside of DeepSpeed.

It reaches into private attributes of DeepSpeed 0.19.8, which is pinned for that reason. DeepSpeed's own checkpoints are
pickles, and reading one runs whatever somebody put into it; they also fit one number of ranks and one ZeRO stage.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, as torch names them."""
PARTS = ("original", *MOMENTS)
"""What there is of every slice: the fp32 original of the weights, and the moments."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of one parameter that this rank updates. The tensors are the optimiser's own, not copies."""

    name: str
    """The parameter's."""
    start: int
    """Index of its first number in the parameter laid flat."""
    parts: Mapping[str, torch.Tensor]
    """By name in PARTS, each (numbers,) in fp32."""

    @property
    def stop(self) -> int:
        """Index behind its last number."""
        return self.start + self.parts["original"].numel()


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a slice lies in a tensor that the inner optimiser updates."""

    flat: torch.Tensor
    offset: int
    start: int
    length: int


def list_slices(engine: Any, named: Mapping[str, nn.Parameter]) -> list[Slice]:
    """Every slice that this rank updates, in the order of ``named``; together the processes' are everything.

    Without ZeRO every rank updates everything, and each slice is a whole parameter.
    """
    slices = []
    for name, place in _locate_all(engine, named):
        state = _state_of(engine, place.flat)
        tensors = {"original": place.flat.detach(), **{moment: state[moment] for moment in MOMENTS}}
        parts = {part: tensor.view(-1).narrow(0, place.offset, place.length) for part, tensor in tensors.items()}
        slices.append(Slice(name=name, start=place.start, parts=parts))
    return slices


def make_moments(engine: Any) -> None:
    """Have Adam's moments where there are none yet: its first step would make them, as zeros, and so take memory."""
    for flat in _flats(engine):
        _state_of(engine, flat)


def slices_to_save(slices: list[Slice], engine: Any) -> list[Slice]:
    """The slices that this rank saves: all of its own, or where all have the same ones, its shard of them."""
    if engine.zero_optimization_stage() == 0:
        return slices[dist.get_rank() :: dist.get_world_size()]
    return slices


def resume_slices(engine: Any, step: int) -> None:
    """Take over what was written into the slices: Adam has done ``step`` steps, and the model's weights are made anew.

    Every rank calls it.
    """
    for flat in _flats(engine):
        count = _state_of(engine, flat)["step"]
        count.fill_(float(step))
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        # What the end of DeepSpeed's own step does.
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def _locate_all(engine: Any, named: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, _Place]]:
    locate = {0: _locate_whole, 1: _locate_fragment, 2: _locate_fragment, 3: _locate_partition}
    for name, parameter in named.items():
        place = locate[engine.zero_optimization_stage()](engine.optimizer, parameter)
        if place is not None and place.length > 0:
            yield name, place


def _locate_whole(optimizer: Any, parameter: nn.Parameter) -> _Place:
    return _Place(flat=parameter, offset=0, start=0, length=parameter.numel())


def _locate_fragment(optimizer: Any, parameter: nn.Parameter) -> _Place | None:
    """ZeRO-1 and 2 lay the parameters of a group end to end and cut that into equal parts."""
    fragment = parameter._hp_mapping  # type: ignore[attr-defined]
    if fragment is None:
        return None
    return _Place(
        flat=_fragment_flats(optimizer)[fragment.param_group_index],
        offset=fragment.hp_fragment_address.start,
        start=fragment.lp_fragment_address.start,
        length=fragment.hp_fragment_address.numel,
    )


def _locate_partition(optimizer: Any, parameter: Any) -> _Place:
    """ZeRO-3 cuts every parameter into equal parts, the last one filled up."""
    index, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank() * length
    return _Place(
        flat=optimizer.fp32_partitioned_groups_flat[index],
        offset=offset,
        start=start,
        length=max(0, min(length, parameter.ds_numel - start)),
    )


def _fragment_flats(optimizer: Any) -> list[torch.Tensor]:
    # In bf16, stage 1 is another class of DeepSpeed's.
    flats: list[torch.Tensor] = getattr(optimizer, "single_partition_of_fp32_groups", None) or (
        optimizer.fp32_groups_flat_partition
    )
    return flats


def _flats(engine: Any) -> list[torch.Tensor]:
    """Every tensor that the inner optimiser updates."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if stage == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    return _fragment_flats(optimizer)


def _state_of(engine: Any, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """Adam's state of ``flat``, made as Adam itself would if there is none yet."""
    optimizer = engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    state: dict[str, torch.Tensor] = optimizer.state[flat]
    if not state:
        # Fused AdamW keeps its step beside the weights.
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(flat.detach())
    return state
