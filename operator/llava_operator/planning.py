"""The plan of a run's training, and whether it can be carried out. Pure.

Made once, when prepare has read the model and counted the data, and before a GPU is taken.
"""

from dataclasses import dataclass, replace

from llava_api.constants import TRAINING_STAGES, StageName
from llava_api.failures import Reason
from llava_api.memory import (
    MemoryPlan,
    Prepared,
    Remedy,
    accumulation,
    batch_of,
    find_remedies,
    num_steps,
    plan_memory,
    workload_of,
)
from llava_api.model_facts import ModelFacts
from llava_api.quantities import GIB, format_gib
from llava_api.report import PrepareNumbers
from llava_api.spec import Spec
from llava_api.stages import stages_of
from llava_api.status import Plan, PlanTerm
from llava_operator.cards import Cards, find_shortcomings

SHOWN_TERMS = 3
"""Largest terms named in a refusal."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a run cannot be trained as it is."""

    stage: StageName
    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What training will take, and what stands against it."""

    plan: Plan | None
    """None where nothing is known of the model."""
    refusal: Refusal | None = None


@dataclass(frozen=True, kw_only=True)
class _Demand:
    stage: StageName
    prepared: Prepared
    memory: MemoryPlan


def plan_training(spec: Spec, found: PrepareNumbers, cards: Cards) -> Planned:
    """Plan every training stage of a run.

    Args:
        spec: of the run.
        found: what prepare found.
        cards: what is known of the GPUs.

    Returns:
        The plan, with the memory of the stage that takes most; and the first reason not to begin.
    """
    stages = [stage for stage in stages_of(spec) if stage in TRAINING_STAGES]
    demands = [_demand(spec, stage, found.model, found) for stage in stages] if found.model else []
    plan = _describe(spec, found, max(demands, key=lambda one: one.memory.total), cards) if demands else None
    shortcomings = find_shortcomings(spec, cards)
    if shortcomings:
        message = "; ".join(shortcomings) + _describe_way_out(spec.workers.compute_capability, "computeCapability")
        refusal = Refusal(stage=stages[0], reason=Reason.UNSUPPORTED_DEVICE, message=message)
        return Planned(plan=plan, refusal=refusal)
    if spec.training.attention == "flash_attention_2" and found.flash_attention is False:
        message = (
            "spec.training.attention is flash_attention_2, but flash-attn is not in the trainer image: set it to sdpa "
            "or auto, or spec.image.reference to an image that was built with it"
        )
        return Planned(plan=plan, refusal=Refusal(stage=stages[0], reason=Reason.UNSUPPORTED_DEVICE, message=message))
    refusals = (_refuse(spec, demand, found, cards) for demand in demands)
    return Planned(plan=plan, refusal=next(filter(None, refusals), None))


def _demand(spec: Spec, stage: StageName, model: ModelFacts, found: PrepareNumbers) -> _Demand:
    largest = found.largest_alignment if stage is StageName.ALIGN else found.largest
    prepared = Prepared(largest=largest, has_flash=bool(found.flash_attention))
    return _Demand(stage=stage, prepared=prepared, memory=plan_memory(model, workload_of(spec, stage, model, prepared)))


def _describe(spec: Spec, found: PrepareNumbers, largest: _Demand, cards: Cards) -> Plan:
    trains = StageName.TRAIN in stages_of(spec)
    main = StageName.TRAIN if trains else StageName.ALIGN
    return Plan(
        device_memory=format_gib(largest.memory.total),
        device_memory_available=format_gib(cards.memory) if cards.memory else None,
        terms=tuple(PlanTerm(name=term.name, gibibytes=round(term.size / GIB, 2)) for term in largest.memory.terms),
        per_device_batch=batch_of(spec, main).per_device,
        accumulation=accumulation(spec, main),
        total_steps=num_steps(spec, StageName.TRAIN, found.samples_train) if trains else 0,
        alignment_steps=num_steps(spec, StageName.ALIGN, found.samples_alignment) if spec.alignment else None,
    )


def _refuse(spec: Spec, demand: _Demand, found: PrepareNumbers, cards: Cards) -> Refusal | None:
    available, model = cards.memory, found.model
    if available is None or model is None or spec.workers.gpus == 0 or demand.memory.total <= available:
        return None
    with_flash = _total_with_flash(spec, demand, model)
    if found.flash_attention is None and with_flash <= available:
        # Nobody knows whether it would not fit.
        return None
    remedies = find_remedies(spec, demand.stage, model, prepared=demand.prepared, available=available)
    largest = sorted(demand.memory.terms, key=lambda term: -term.size)[:SHOWN_TERMS]
    terms = ", ".join(f"{term.name} {format_gib(term.size)}" for term in largest)
    message = (
        f"{demand.stage} takes {format_gib(demand.memory.total)} on each GPU (most of it {terms}) with "
        f"{batch_of(spec, demand.stage).per_device} samples a device, but a GPU has {format_gib(available)} "
        f"({cards.memory_from}). {_describe_remedies(remedies)}"
        f"{_describe_flash(with_flash) if with_flash <= available else ''}"
        f"{_describe_way_out(spec.workers.gpu_memory, 'gpuMemory')}"
    )
    return Refusal(stage=demand.stage, reason=Reason.PLAN_DOES_NOT_FIT, message=message)


def _total_with_flash(spec: Spec, demand: _Demand, model: ModelFacts) -> int:
    """What it would take if flash-attn were in the image; ``auto`` takes it then."""
    prepared = replace(demand.prepared, has_flash=True)
    return plan_memory(model, workload_of(spec, demand.stage, model, prepared)).total


def _describe_flash(total: int) -> str:
    return (
        f". spec.training.attention auto is sdpa here, because flash-attn is not in the trainer image: it takes "
        f"{format_gib(total)} with a spec.image.reference that has it"
    )


def _describe_way_out(given: str | None, field: str) -> str:
    """Nodes that an autoscaler has yet to make have no labels."""
    return "" if given else f". If the run gets other GPUs than the nodes' labels tell of, set spec.workers.{field}"


def _describe_remedies(remedies: tuple[Remedy, ...]) -> str:
    if not remedies:
        return "Nothing that could be changed makes it fit: take GPUs with more memory, or more of them"
    told = "; or ".join(
        f"{', '.join(f'spec.{change}' for change in remedy.changes)} (accumulation {remedy.accumulation}, "
        f"{format_gib(remedy.total)})"
        for remedy in remedies
    )
    offloads = any("offload" in change for remedy in remedies for change in remedy.changes)
    # Else the next attempt would be killed for the pod's memory, whose default is made for what lies on the GPU.
    price = ". What is offloaded takes the pod's memory: raise spec.workers.resources" if offloads else ""
    return f"This fits: {told}{price}"
