"""The plan of a run's training, and whether it can be carried out. Pure.

Made once, when prepare has read the model and counted the data, and before a GPU is taken.
"""

import math
from dataclasses import dataclass, replace

from llava_api.constants import TRAINING_STAGES, StageName
from llava_api.failures import Reason
from llava_api.memory import (
    HostPlan,
    MemoryPlan,
    Prepared,
    Remedy,
    StoragePlan,
    accumulation,
    batch_of,
    find_remedies,
    memory_of_pod,
    num_steps,
    plan_host,
    plan_memory,
    plan_storage,
    workload_of,
)
from llava_api.model_facts import ModelFacts
from llava_api.optimizer_steps import describe_choice
from llava_api.quantities import GIB, format_gib
from llava_api.report import MicroBatch
from llava_api.spec import Spec
from llava_api.stages import stages_of
from llava_api.status import Data, Plan, PlanTerm
from llava_operator.deciding.gpus import KnownGpus, find_shortcomings
from llava_operator.deciding.plan_warnings import list_warnings

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
    """None where nothing is known of the model, or nothing is trained."""
    refusal: Refusal | None = None


@dataclass(frozen=True, kw_only=True)
class _Demand:
    stage: StageName
    prepared: Prepared
    memory: MemoryPlan
    host: HostPlan


def plan_training(spec: Spec, found: Data, model: ModelFacts | None, gpus: KnownGpus) -> Planned:
    """Plan every training stage of a run.

    Args:
        spec: of the run, with a number in ``training.batch.global``.
        found: what prepare found.
        model: what it starts from; None where nothing is known of it.
        gpus: what is known of the GPUs.

    Returns:
        The plan, with the memory of the stage that takes most, and none where nothing is trained; and the first reason
        not to begin.
    """
    stages = [stage for stage in stages_of(spec) if stage in TRAINING_STAGES]
    demands = [_demand(spec, stage, model, found) for stage in stages] if model else []
    storage = _plan_storage(spec, found, model) if model else None
    if not stages:
        # An adapter that was there before is merged: what that makes has to fit on the volume.
        room = _refuse_storage(spec, found, model, storage, StageName.MERGE) if storage and model else None
        return Planned(plan=None, refusal=room)
    plan = None
    if storage is not None and model is not None:
        plan = _describe(spec, found, model, demands, gpus, storage)
    refusals = [
        _refuse_device(spec, found, gpus, stages[0]),
        *(_refuse(spec, demand, found, model, gpus) for demand in demands if model),
        *(_refuse_host(spec, demand, model) for demand in demands if model),
        _refuse_storage(spec, found, model, storage, stages[0]) if storage and model else None,
    ]
    return Planned(plan=plan, refusal=next(filter(None, refusals), None))


def _refuse_device(spec: Spec, found: Data, gpus: KnownGpus, stage: StageName) -> Refusal | None:
    shortcomings = find_shortcomings(spec, gpus)
    message = ""
    if shortcomings:
        message = "; ".join(shortcomings) + _describe_way_out(spec.workers.compute_capability, "computeCapability")
    elif spec.training.attention == "flash_attention_2" and found.flash_attention is False:
        message = (
            "spec.training.attention is flash_attention_2, but flash-attn is not in the trainer image: set it to sdpa "
            "or auto, or spec.image.reference to an image that was built with it"
        )
    return Refusal(stage=stage, reason=Reason.UNSUPPORTED_DEVICE, message=message) if message else None


def _demand(spec: Spec, stage: StageName, model: ModelFacts, found: Data) -> _Demand:
    largest = found.largest_alignment if stage is StageName.ALIGN else found.largest
    prepared = Prepared(largest=largest, has_flash=bool(found.flash_attention), omits_masks=bool(found.omits_masks))
    return _Demand(
        stage=stage,
        prepared=prepared,
        memory=plan_memory(model, workload_of(spec, stage, model, prepared)),
        host=plan_host(spec, stage, model, prepared),
    )


def _plan_storage(spec: Spec, found: Data, model: ModelFacts) -> StoragePlan:
    samples = {StageName.ALIGN: found.samples_alignment, StageName.TRAIN: found.samples_epoch}
    return plan_storage(spec, model, samples)


def _refuse_storage(
    spec: Spec, found: Data, model: ModelFacts, storage: StoragePlan, stage: StageName
) -> Refusal | None:
    """Where nobody knows what is free, nothing is refused: many a volume is larger than was asked for."""
    available = found.free_bytes
    if available is None or storage.total <= available:
        return None
    of_them = f" (checkpoints of {format_gib(storage.checkpoint)} each take up to {format_gib(storage.checkpoints)})"
    keep = _find_keep(spec, found, model, available)
    message = (
        f"training and merging put up to {format_gib(storage.total)} on the run's volume"
        f"{of_them if storage.checkpoints else ''}, but {format_gib(available)} of it are free: raise "
        f"spec.storage.size ({spec.storage.size}) by at least {math.ceil((storage.total - available) / GIB)}Gi"
        f"{f', or set spec.training.checkpoint.keep to {keep}' if keep else ''}"
    )
    return Refusal(stage=stage, reason=Reason.STORAGE_FULL, message=message)


def _find_keep(spec: Spec, found: Data, model: ModelFacts, available: int) -> int | None:
    """The most checkpoints to keep with which the run fits."""
    training = spec.training
    for keep in range(training.checkpoint.keep - 1, 0, -1):
        checkpoint = training.checkpoint.model_copy(update={"keep": keep})
        changed = spec.model_copy(update={"training": training.model_copy(update={"checkpoint": checkpoint})})
        if _plan_storage(changed, found, model).total <= available:
            return keep
    return None


def _refuse_host(spec: Spec, demand: _Demand, model: ModelFacts) -> Refusal | None:
    """A pod that goes over its memory is killed hours later, at its first checkpoint."""
    available, needed = memory_of_pod(spec.workers), demand.host.total
    if needed <= available:
        return None
    adapted = ""
    if demand.stage is StageName.TRAIN and spec.training.method == "full":
        changed = spec.model_copy(update={"training": spec.training.model_copy(update={"method": "lora"})})
        takes = plan_host(changed, demand.stage, model, demand.prepared).total
        adapted = f"; spec.training.method lora takes {format_gib(takes)}" if takes <= available else ""
    message = (
        f"{demand.stage} takes {format_gib(needed)} of memory in each pod (most of it {_name_largest(demand.host)}), "
        f"but spec.workers.resources gives it {format_gib(available)}: set spec.workers.resources.limits.memory to at "
        f"least {math.ceil(needed / GIB)}Gi, and requests.memory, too{adapted}"
    )
    return Refusal(stage=demand.stage, reason=Reason.PLAN_DOES_NOT_FIT, message=message)


def _describe(
    spec: Spec, found: Data, model: ModelFacts, demands: list[_Demand], gpus: KnownGpus, storage: StoragePlan
) -> Plan:
    largest = max(demands, key=lambda one: one.memory.total)
    host = max((one.host for one in demands), key=lambda one: one.total)
    trains = StageName.TRAIN in stages_of(spec)
    main = StageName.TRAIN if trains else StageName.ALIGN
    return Plan(
        device_memory=format_gib(largest.memory.total),
        device_memory_available=format_gib(gpus.memory) if gpus.memory else None,
        terms=_describe_terms(largest.memory),
        pod_memory=format_gib(host.total),
        pod_memory_available=format_gib(memory_of_pod(spec.workers)),
        pod_terms=_describe_terms(host),
        per_device_batch=batch_of(spec, main).per_device,
        accumulation=accumulation(spec, main),
        global_batch=spec.training.batch.num_samples if trains else None,
        global_batch_reason=_describe_global_batch(spec, found) if trains else None,
        total_steps=num_steps(spec, StageName.TRAIN, found.samples_epoch) if trains else 0,
        alignment_steps=num_steps(spec, StageName.ALIGN, found.samples_alignment) if spec.alignment else None,
        checkpoint_size=format_gib(storage.checkpoint),
        checkpoint_seconds=storage.saving_s,
        checkpoints_size=format_gib(storage.checkpoints),
        storage=format_gib(storage.total),
        storage_available=spec.storage.size if found.free_bytes is None else format_gib(found.free_bytes),
        warnings=list_warnings(spec, found, model, storage),
    )


def _describe_global_batch(spec: Spec, found: Data) -> str | None:
    if found.global_batch is None:
        return None
    return describe_choice(found.global_batch, spec.training, samples=found.samples_epoch)


def _describe_terms(plan: MemoryPlan | HostPlan) -> tuple[PlanTerm, ...]:
    return tuple(PlanTerm(name=term.name, gibibytes=round(term.size / GIB, 2)) for term in plan.terms)


def _name_largest(plan: MemoryPlan | HostPlan) -> str:
    largest = sorted(plan.terms, key=lambda term: -term.size)[:SHOWN_TERMS]
    return ", ".join(f"{term.name} {format_gib(term.size)}" for term in largest)


def _refuse(spec: Spec, demand: _Demand, found: Data, model: ModelFacts, gpus: KnownGpus) -> Refusal | None:
    available = gpus.memory
    if available is None or spec.workers.gpus == 0 or demand.memory.total <= available:
        return None
    if _total_at_least(spec, demand, found, model) <= available:
        # Nobody knows whether it would not fit.
        return None
    with_flash = _total_with_flash(spec, demand, model)
    remedies = find_remedies(spec, demand.stage, model, prepared=demand.prepared, available=available)
    message = (
        f"{demand.stage} takes {format_gib(demand.memory.total)} on each GPU (most of it "
        f"{_name_largest(demand.memory)}) with {batch_of(spec, demand.stage).per_device} samples a device, "
        f"but a GPU has {format_gib(available)} "
        f"({gpus.memory_from}). {_describe_remedies(remedies)}"
        f"{_describe_flash(with_flash) if with_flash <= available else ''}"
        f"{_describe_way_out(spec.workers.gpu_memory, 'gpuMemory')}"
    )
    return Refusal(stage=demand.stage, reason=Reason.PLAN_DOES_NOT_FIT, message=message)


def _total_at_least(spec: Spec, demand: _Demand, found: Data, model: ModelFacts) -> int:
    """What it takes if all that prepare has not told of turns out well; an older trainer image tells less."""
    nothing = MicroBatch(rows=1, tokens=1, pictures=0, supervised=0)
    has_flash = demand.prepared.has_flash or found.flash_attention is None
    # It does not tell of masks because it makes them.
    best = replace(demand.prepared, largest=demand.prepared.largest or nothing, has_flash=has_flash)
    return plan_memory(model, workload_of(spec, demand.stage, model, best)).total


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
    offloading = [remedy for remedy in remedies if any("offload" in change for change in remedy.changes)]
    price = ""
    if offloading:
        # Else the next attempt would be refused for the pod's memory, whose default is made for what lies on the GPU.
        largest = math.ceil(max(remedy.host for remedy in offloading) / GIB)
        price = (
            f". What is offloaded takes the pod's memory, up to {largest}Gi of it: "
            "spec.workers.resources.limits.memory has to be as large"
        )
    return f"This fits: {told}{price}"
