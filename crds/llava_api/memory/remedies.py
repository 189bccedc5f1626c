"""Where a plan does not fit: the configurations nearest to the one asked for that do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llava_api.constants import StageName
from llava_api.memory.demand import Prepared, accumulation, batch_of, num_processes, workload_of
from llava_api.memory.host import plan_host
from llava_api.memory.plan import plan_memory
from llava_api.model_facts import ModelFacts
from llava_api.spec import Spec, Training

MAX_REMEDIES = 4

Switch = tuple[str, Callable[[Training], Training]]
"""What it is called in a manifest, and what it does."""


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A configuration that fits."""

    changes: tuple[str, ...]
    """Settings to change with their values, as paths below spec."""
    accumulation: int
    total: int
    """Bytes that it takes of a GPU."""
    host: int
    """Bytes that it takes of a pod's memory."""


def find_remedies(
    spec: Spec, stage: StageName, model: ModelFacts, *, prepared: Prepared, available: int
) -> tuple[Remedy, ...]:
    """Configurations that fit into ``available`` bytes, the smallest changes first.

    For each set of switches (none, one, then several) the largest batch per device that fits and divides the global
    batch is taken, so that what is learned stays the same. Sets that say more without allowing more are left out.
    """
    found: list[Remedy] = []
    accepted: list[tuple[frozenset[str], int]] = []
    for switches in _sets_of_switches(spec, stage):
        changed = _switch(spec, switches)
        fitting = _largest_batch(changed, stage, model, prepared, available)
        if fitting is None:
            continue
        candidate, total = fitting
        names, rows = frozenset(name for name, _ in switches), batch_of(candidate, stage).per_device
        if any(fewer < names and held >= rows for fewer, held in accepted):
            continue
        accepted.append((names, rows))
        changes = (*(name for name, _ in switches), *_batch_change(spec, candidate, stage))
        host = plan_host(candidate, stage, model, prepared).total
        found.append(Remedy(changes=changes, accumulation=accumulation(candidate, stage), total=total, host=host))
    return tuple(found[:MAX_REMEDIES])


def _sets_of_switches(spec: Spec, stage: StageName) -> Iterator[tuple[Switch, ...]]:
    training, several = spec.training, num_processes(spec) > 1
    recompute: Switch | None = None
    if not training.gradient_checkpointing:
        recompute = (
            "training.gradientCheckpointing true",
            lambda t: t.model_copy(update={"gradient_checkpointing": True}),
        )
    fuse: Switch | None = None
    if training.attention == "eager":
        fuse = ("training.attention sdpa", lambda t: t.model_copy(update={"attention": "sdpa"}))
    third: Switch | None = None
    answers = training.validation is not None and training.validation.answers is not None
    if training.zero.stage < 3 and training.method != "qlora" and not answers:
        third = ("training.zero.stage 3", lambda t: _zero(t, stage=3))
    share = third if several else None
    offload: Switch | None = None
    if not training.zero.offload.optimizer and training.zero.stage >= 1:
        offload = ("training.zero.offload.optimizer true", lambda t: _offload(t, optimizer=True))
    quantize: Switch | None = None
    if training.method == "lora" and stage is StageName.TRAIN and training.zero.stage != 3:
        quantize = ("training.method qlora", lambda t: t.model_copy(update={"method": "qlora"}))
    adapt: Switch | None = None
    if training.method == "full" and stage is StageName.TRAIN:
        adapt = ("training.method lora", lambda t: t.model_copy(update={"method": "lora"}))
    unload: Switch | None = None
    if (third or training.zero.stage == 3) and not training.zero.offload.parameters:
        unload = ("training.zero.offload.parameters true", lambda t: _offload(t, parameters=True))
    yield ()
    for some in (
        (fuse,), (recompute,), (share,), (offload,), (quantize,), (adapt,), (fuse, recompute),
        (recompute, share), (recompute, offload), (recompute, quantize),
        # Offloading takes gradients off the GPU under stage 3 alone: of use to a single process, too.
        (third, offload), (recompute, third, offload), (third, offload, unload), (recompute, third, offload, unload),
        (recompute, adapt),
    ):  # fmt: skip
        switches = tuple(switch for switch in some if switch is not None)
        if len(switches) == len(some):
            yield switches


def _switch(spec: Spec, switches: tuple[Switch, ...]) -> Spec:
    training = spec.training
    for _, apply in switches:
        training = apply(training)
    return spec.model_copy(update={"training": training})


def _zero(training: Training, **changes: object) -> Training:
    return training.model_copy(update={"zero": training.zero.model_copy(update=changes)})


def _offload(training: Training, **changes: bool) -> Training:
    return _zero(training, offload=training.zero.offload.model_copy(update=changes))


def _largest_batch(
    spec: Spec, stage: StageName, model: ModelFacts, prepared: Prepared, available: int
) -> tuple[Spec, int] | None:
    batch, processes = batch_of(spec, stage), num_processes(spec)
    # One that was chosen by the data may not divide evenly once the run has another size; any rows do then.
    is_even = batch.num_samples % processes == 0
    for rows in range(batch.per_device, 0, -1):
        if is_even and batch.num_samples % (rows * processes):
            continue
        changed = _with_rows(spec, stage, rows)
        total = plan_memory(model, workload_of(changed, stage, model, prepared)).total
        if total <= available:
            return changed, total
    return None


def _with_rows(spec: Spec, stage: StageName, rows: int) -> Spec:
    batch = batch_of(spec, stage).model_copy(update={"per_device": rows})
    part = spec.alignment if stage is StageName.ALIGN else spec.training
    assert part is not None
    name = "alignment" if stage is StageName.ALIGN else "training"
    return spec.model_copy(update={name: part.model_copy(update={"batch": batch})})


def _batch_change(spec: Spec, candidate: Spec, stage: StageName) -> tuple[str, ...]:
    rows = batch_of(candidate, stage).per_device
    if rows == batch_of(spec, stage).per_device:
        return ()
    name = "alignment" if stage is StageName.ALIGN else "training"
    return (f"{name}.batch.perDevice {rows}",)
