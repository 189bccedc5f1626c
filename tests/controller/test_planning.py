"""Proves the plan of a run's training, and that a run which cannot be trained is refused with what would work."""

from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.report import MicroBatch, PrepareNumbers
from llava_api.spec import Spec
from llava_api.status import Data
from llava_operator.deciding.gpus import KnownGpus
from llava_operator.deciding.planning import Planned, plan_training
from tests.api.test_memory import make_7b
from tests.controller.makers import make_spec

GIB = 1 << 30
ALIGNMENT = {"dataset": {"source": "pvc://pairs/", "format": "llava", "file": "a.json"}, "epochs": 2}


def gpu_spec(**parts: Any) -> Spec:
    return make_spec(
        **{"training": {"batch": {"perDevice": 16, "global": 128}, "epochs": 3}, "workers": {"gpus": 4}, **parts}
    )


def micro_batch(rows: int, length: int) -> MicroBatch:
    return MicroBatch(rows=rows, tokens=rows * length, pictures=rows, supervised=rows * length // 2)


def numbers(**changes: Any) -> PrepareNumbers:
    found = {
        "samples_train": 1000, "samples_validation": 2, "pairs_train": 9, "pairs_validation": 3, "images": 10,
        "supervised_tokens": 99, "longest_sample_tokens": 2000, "overlong_samples": 0, "samples_alignment": 600,
        "largest": micro_batch(16, 1800), "largest_alignment": micro_batch(32, 700), "model": make_7b(),
    }  # fmt: skip
    return PrepareNumbers(**{**found, **changes})


def test_few_steps_are_warned_of():
    (warning,) = plan_for(gpu_spec(), numbers(samples_train=40), gpus(80)).plan.warnings
    assert warning.startswith("training takes 3 optimiser steps on 40 samples")


def test_steps_are_those_of_an_epoch_with_its_mixture() -> None:
    planned = plan_for(gpu_spec(), numbers(samples_train=1000, samples_mixture=536), gpus(80))
    assert planned.plan.total_steps == 12 * 3


def test_what_cannot_be_read_or_decided_is_warned_of() -> None:
    found = numbers(groups_validation=4, sufficient_fraction=0.3, image_scale=0.1, text_height_px=4.5)
    few_groups, pictures, texts = plan_for(gpu_spec(), found, gpus(80)).plan.warnings[1:]
    assert few_groups.endswith("set spec.dataset.validation.fraction to 0.3")
    assert pictures.startswith(
        "the median picture is scaled to 10% of its size for the vision tower, which sees 336 px"
    )
    assert texts.startswith("the median word is 4.5 px high")


def test_too_few_groups_for_a_gate_are_warned_of_where_there_is_one() -> None:
    found = numbers(groups_validation=7, samples_train=5000)
    gated = gpu_spec(evaluation={"gate": {}})
    assert not [one for one in plan_for(gpu_spec(), found, gpus(80)).plan.warnings if "held out" in one]
    (warning,) = [one for one in plan_for(gated, found, gpus(80)).plan.warnings if "held out" in one]
    assert warning.startswith("7 groups are held out: of 7 spec.evaluation.gate decides nothing, which takes 8")


@pytest.mark.parametrize(("groups", "is_told"), [(0, False), (1, True), (7, True), (8, False)])
def test_a_retention_set_of_too_few_groups_is_warned_of(groups: int, is_told: bool) -> None:
    found = numbers(groups_retention=groups, samples_train=5000)
    said = [one for one in plan_for(gpu_spec(), found, gpus(80)).plan.warnings if "retention" in one]
    assert bool(said) is is_told
    assert all(f"has {groups} group" in one and "that takes 8; name a set" in one for one in said)


@pytest.mark.parametrize(
    ("what", "projector", "is_told"),
    [("adapter", "train", True), ("adapter", "frozen", False), ("both", "train", False), ("merged", "train", False)],
)
def test_an_adapter_that_servers_refuse_is_warned_of(what: str, projector: str, is_told: bool) -> None:
    training = {"batch": {"perDevice": 16, "global": 128}, "epochs": 3, "projector": projector}
    spec = gpu_spec(training=training, publish={"what": what, "destinations": [{"address": "pvc://models/trays"}]})
    said = [one for one in plan_for(spec, numbers(), gpus(80)).plan.warnings if "spec.publish" in one]
    assert bool(said) is is_told
    assert all("set spec.publish.what to merged or both, or spec.training.projector to frozen" in one for one in said)


@pytest.mark.parametrize(
    ("address", "secret", "is_told"),
    [("hf://team/trays", None, True), ("hf://team/trays", {"name": "hub"}, False), ("s3://models/trays", None, False)],
)
def test_a_hub_that_will_take_nothing_is_warned_of(address: str, secret: dict[str, str] | None, is_told: bool) -> None:
    places = [{"address": "pvc://models/trays"}, {"address": address, "secretRef": secret}]
    spec = gpu_spec(publish={"destinations": places})
    said = [one for one in plan_for(spec, numbers(), gpus(80)).plan.warnings if "spec.publish" in one]
    assert bool(said) is is_told
    assert all(one.startswith("spec.publish.destinations[1].secretRef is left out") for one in said)


def plan_for(spec: Spec, found: PrepareNumbers, known: KnownGpus) -> Planned:
    return plan_training(spec, Data.model_validate(found.model_dump()), found.model, known)


def gpus(gib: int) -> KnownGpus:
    return KnownGpus(memory=gib * GIB, memory_from="spec.workers.gpuMemory")


def test_a_plan_says_what_training_takes_and_how_long_it_is():
    planned = plan_for(gpu_spec(), numbers(), gpus(80))
    assert planned.refusal is None
    plan = planned.plan
    assert (plan.per_device_batch, plan.accumulation, plan.total_steps, plan.alignment_steps) == (16, 2, 24, None)
    assert plan.device_memory_available == "80.0Gi"
    terms = {term.name: term.gibibytes for term in plan.terms}
    assert sum(terms.values()) == pytest.approx(float(plan.device_memory.removesuffix("Gi")), abs=0.1)
    assert terms["weights"] == pytest.approx(13.8, abs=0.1)


def test_the_micro_batch_that_prepare_found_counts_and_without_it_all_that_is_allowed():
    def memory(**changes: Any) -> float:
        plan = plan_for(gpu_spec(), numbers(**changes), KnownGpus()).plan
        return float(plan.device_memory.removesuffix("Gi"))

    assert memory(largest=micro_batch(16, 1000)) < memory() < memory(largest=None)


def test_without_the_models_shape_there_is_no_plan_and_no_refusal():
    planned = plan_for(gpu_spec(), numbers(model=None), gpus(1))
    assert (planned.plan, planned.refusal) == (None, None)


def memory(size: str) -> dict[str, Any]:
    return {"requests": {"cpu": "8", "memory": size}, "limits": {"memory": size}}


def test_a_run_on_cpus_has_its_memory_planned_and_gpus_are_not_held_against_it():
    planned = plan_for(gpu_spec(workers={"gpus": 0, "resources": memory("100Gi")}), numbers(), gpus(1))
    assert planned.refusal is None
    terms = {term.name: term.gibibytes for term in planned.plan.pod_terms}
    # All that would be on a GPU, in fp32: the weights alone are 26 GiB.
    assert terms["training"] > 40
    refusal = plan_for(gpu_spec(workers={"gpus": 0}), numbers(), gpus(1)).refusal
    assert refusal.reason is Reason.PLAN_DOES_NOT_FIT


def full_spec(**workers: Any) -> Spec:
    training = {"method": "full", "batch": {"perDevice": 4, "global": 128}, "epochs": 3}
    return gpu_spec(training=training, workers={"gpus": 8, **workers})


def test_a_pod_that_its_first_checkpoint_would_kill_is_refused_before_training_with_the_number():
    planned = plan_for(full_spec(), numbers(largest=micro_batch(4, 1800)), gpus(80))
    assert (planned.refusal.stage, planned.refusal.reason) == (StageName.TRAIN, Reason.PLAN_DOES_NOT_FIT)
    assert planned.refusal.message == (
        "train takes 104.0Gi of memory in each pod (most of it checkpoint copies 75.5Gi, processes 24.8Gi, pictures "
        "3.2Gi), but spec.workers.resources gives it 64.0Gi: set spec.workers.resources.limits.memory to at least "
        "104Gi, and requests.memory, too; spec.training.method lora takes 33.0Gi"
    )
    plan = planned.plan
    assert (plan.pod_memory, plan.pod_memory_available) == ("104.0Gi", "64.0Gi")
    assert sum(term.gibibytes for term in plan.pod_terms) == pytest.approx(104.0, abs=0.1)


@pytest.mark.parametrize(
    ("workers", "is_refused"),
    [
        ({"resources": memory("104Gi")}, False),
        # A request without a limit is the limit; /dev/shm comes on top and is no part of it.
        ({"resources": {"requests": {"memory": "104Gi"}}, "shmSize": "64Gi"}, False),
        ({"resources": {"requests": {"memory": "200Gi"}, "limits": {"memory": "60Gi"}}}, True),
        ({"resources": {"limits": {"nvidia.com/other": "1"}}}, True),
        # Two pods copy half each.
        ({"gpus": 4, "replicas": 2}, False),
    ],
)
def test_what_a_pod_is_given_decides(workers: dict[str, Any], is_refused: bool):
    refusal = plan_for(full_spec(**workers), numbers(largest=micro_batch(4, 1800)), gpus(80)).refusal
    assert (refusal is not None) is is_refused


def test_a_checkpoint_that_is_not_written_before_a_pod_is_killed_is_warned_of():
    spec = full_spec(resources=memory("128Gi"))
    planned = plan_for(spec, numbers(largest=micro_batch(4, 1800)), gpus(80))
    assert planned.refusal is None
    assert planned.plan.checkpoint_seconds == 619
    few_steps, warning = planned.plan.warnings
    assert few_steps.startswith("training takes")
    assert "a checkpoint of 75.5Gi is expected to take 619 s" in warning
    assert (
        "a pod that is asked to stop has 110 s for it: set spec.workers.gracePeriodSeconds to at least 629" in warning
    )
    patient = full_spec(resources=memory("128Gi"), gracePeriodSeconds=629)
    assert plan_for(patient, numbers(largest=micro_batch(4, 1800)), gpus(80)).plan.warnings[1:] == ()
    assert plan_for(gpu_spec(), numbers(), gpus(80)).plan.warnings[1:] == ()


def test_gpus_of_unknown_memory_are_not_held_against_a_run():
    planned = plan_for(gpu_spec(), numbers(), KnownGpus())
    assert planned.refusal is None
    assert planned.plan.device_memory_available is None


def test_a_plan_that_does_not_fit_is_refused_with_what_does():
    refusal = plan_for(gpu_spec(), numbers(), gpus(24)).refusal
    assert (refusal.stage, refusal.reason) == (StageName.TRAIN, Reason.PLAN_DOES_NOT_FIT)
    assert refusal.message.startswith("train takes 3")
    assert "a GPU has 24.0Gi (spec.workers.gpuMemory)" in refusal.message
    assert "most of it activations" in refusal.message
    assert "spec.training.batch.perDevice 4 (accumulation 8, " in refusal.message
    assert "spec.training.method qlora, spec.training.batch.perDevice 8" in refusal.message
    assert "offloaded takes the pod's memory, up to 26Gi of it: spec.workers.resources.limits" in refusal.message
    assert len(refusal.message) < 1024


def without_checkpointing(*, attention: str = "auto") -> Spec:
    training = {"batch": {"perDevice": 2, "global": 8}, "gradientCheckpointing": False, "attention": attention}
    return gpu_spec(training=training)


def largest(flash_attention: bool | None) -> PrepareNumbers:
    return numbers(largest=micro_batch(2, 2048), flash_attention=flash_attention)


def test_masks_count_where_the_image_has_no_flash_attn():
    def memory(flash_attention: bool | None) -> float:
        plan = plan_for(without_checkpointing(), largest(flash_attention), KnownGpus()).plan
        return float(plan.device_memory.removesuffix("Gi"))

    # 32 masks of 2 x 2048 x 2048 numbers in bf16, and what PyTorch's allocator loses on them.
    assert memory(False) - memory(True) == pytest.approx(32 * 2**24 / GIB * 1.05, abs=0.1)
    assert memory(None) == memory(False)


def test_masks_count_only_where_the_image_makes_them():
    def memory(omits_masks: bool | None, **training: Any) -> float:
        found = numbers(largest=micro_batch(2, 2048), flash_attention=False, omits_masks=omits_masks)
        changed = {**without_checkpointing().training.model_dump(by_alias=True, exclude_unset=True), **training}
        return float(plan_for(gpu_spec(training=changed), found, KnownGpus()).plan.device_memory.removesuffix("Gi"))

    masks = pytest.approx(32 * 2**24 / GIB * 1.05, abs=0.1)
    assert memory(None) - memory(True) == masks
    # Packed, torch's varlen_attn needs none either, and sdpa does.
    assert memory(True, packing=True) == memory(True)
    assert memory(True, packing=True, attention="sdpa") - memory(True) == masks


def test_a_run_that_flash_attn_makes_fit_is_refused_only_where_it_is_known_to_be_missing():
    needed = plan_for(without_checkpointing(), largest(True), KnownGpus()).plan.device_memory
    known = KnownGpus(memory=int((float(needed.removesuffix("Gi")) + 0.1) * GIB), memory_from="spec.workers.gpuMemory")
    assert plan_for(without_checkpointing(), largest(True), known).refusal is None
    assert plan_for(without_checkpointing(), largest(None), known).refusal is None
    refusal = plan_for(without_checkpointing(), largest(False), known).refusal
    assert refusal.reason is Reason.PLAN_DOES_NOT_FIT
    assert (
        f"spec.training.attention auto is sdpa here, because flash-attn is not in the trainer image: it takes {needed}"
        in refusal.message
    )
    assert "flash" not in plan_for(without_checkpointing(attention="sdpa"), largest(False), known).refusal.message


def test_an_older_image_tells_less_and_is_refused_only_what_no_data_would_make_fit():
    """It may prepare a run while the operator is upgraded: its report has no micro-batch and no word on flash-attn."""
    older = numbers(largest=None, largest_alignment=None)
    spec = gpu_spec(alignment=ALIGNMENT)
    assert plan_for(spec, older, gpus(24)).refusal is None
    assert plan_for(spec, numbers(), gpus(24)).refusal is not None
    assert plan_for(spec, older, gpus(12)).refusal.reason is Reason.PLAN_DOES_NOT_FIT


@pytest.mark.parametrize(("in_image", "is_refused"), [(False, True), (None, False), (True, False)])
def test_flash_attn_that_is_not_in_the_image_is_refused_before_a_gpu_is_taken(in_image: bool | None, is_refused: bool):
    refusal = plan_for(without_checkpointing(attention="flash_attention_2"), largest(in_image), KnownGpus()).refusal
    assert (refusal is not None) is is_refused
    if refusal is not None:
        assert (refusal.stage, refusal.reason) == (StageName.TRAIN, Reason.UNSUPPORTED_DEVICE)
        assert "flash-attn is not in the trainer image: set it to sdpa or auto" in refusal.message


def test_a_plan_says_what_checkpoints_take_on_the_volume():
    spec = gpu_spec(
        training={"method": "full", "checkpoint": {"everySteps": 2}, "batch": {"perDevice": 1, "global": 4}}
    )
    plan = plan_for(spec, numbers(free_bytes=500 * GIB), KnownGpus()).plan
    # 6.76 billion numbers in 12 bytes each; two are kept while the third is written.
    assert (plan.checkpoint_size, plan.checkpoints_size, plan.storage_available) == ("75.5Gi", "226.6Gi", "500.0Gi")


KEEPING_THREE = {"batch": {"perDevice": 16, "global": 128}, "checkpoint": {"everySteps": 1, "keep": 3}}


@pytest.mark.parametrize(("free_gib", "lacking", "keep"), [(1, 40, ""), (38, 3, "2"), (33, 8, "1"), (30, 11, "")])
def test_a_volume_that_would_fill_up_is_refused_before_training(free_gib: int, lacking: int, keep: str):
    spec = gpu_spec(storage={"size": "3Gi"}, training=KEEPING_THREE)
    planned = plan_for(spec, numbers(free_bytes=free_gib * GIB), KnownGpus())
    assert (planned.refusal.stage, planned.refusal.reason) == (StageName.TRAIN, Reason.STORAGE_FULL)
    assert planned.refusal.message == (
        f"training and merging put up to 40.3Gi on the run's volume (checkpoints of 4.4Gi each take up to 17.8Gi), "
        f"but {free_gib}.0Gi of it are free: raise spec.storage.size (3Gi) by at least {lacking}Gi"
        + (f", or set spec.training.checkpoint.keep to {keep}" if keep else "")
    )
    assert planned.plan.storage_available == f"{free_gib}.0Gi"


def test_a_run_that_only_merges_an_adapter_is_held_against_the_volume_alone() -> None:
    model = {"source": "hf://llava-hf/llava-1.5-7b-hf", "adapter": "pvc://earlier/adapter"}
    spec = gpu_spec(storage={"size": "3Gi"}, model=model, training={"method": "none"}, workers={"gpuMemory": "2Gi"})
    assert plan_for(spec, numbers(free_bytes=30 * GIB), KnownGpus()) == Planned(plan=None)
    refusal = plan_for(spec, numbers(free_bytes=3 * GIB), KnownGpus()).refusal
    assert refusal is not None
    assert (refusal.stage, refusal.reason) == (StageName.MERGE, Reason.STORAGE_FULL)
    assert "training and merging put up to 26.3Gi on the run's volume, but 3.0Gi of it are free" in refusal.message


def test_where_nobody_knows_what_is_free_the_size_is_told_and_nothing_refused():
    """The file systems of some networks do not tell, nor did older trainer images."""
    planned = plan_for(gpu_spec(storage={"size": "3Gi"}, training=KEEPING_THREE), numbers(), KnownGpus())
    assert (planned.refusal, planned.plan.storage_available) == (None, "3Gi")


def test_a_volume_with_room_is_no_reason_to_refuse_whatever_its_size_was_asked_to_be():
    spec = gpu_spec(storage={"size": "3Gi"}, training={"checkpoint": {"everySteps": 1}})
    assert plan_for(spec, numbers(free_bytes=10**12), KnownGpus()).refusal is None


def test_without_checkpoints_only_results_are_named():
    spec = gpu_spec(storage={"size": "3Gi"}, training={"checkpoint": {"everySteps": 1000}})
    message = plan_for(spec, numbers(free_bytes=3 * GIB), KnownGpus()).refusal.message
    assert "checkpoint" not in message
    assert "training and merging put up to 26.9Gi on the run's volume, but 3.0Gi" in message


def test_where_nothing_helps_that_is_said():
    refusal = plan_for(gpu_spec(workers={"gpus": 4, "gpuMemory": "2Gi"}), numbers(), gpus(2)).refusal
    assert refusal.message.endswith("take GPUs with more memory, or more of them")


@pytest.mark.parametrize(
    ("known", "field"),
    [(gpus(24), "gpuMemory"), (KnownGpus(capability=(7, 5), capability_from="a"), "computeCapability")],
)
def test_a_refusal_by_labels_says_how_to_overrule_them(known: KnownGpus, field: str):
    by_labels = plan_for(gpu_spec(workers={"gpus": 4}), numbers(), known).refusal
    assert by_labels.message.endswith(f"set spec.workers.{field}")
    said = {"gpuMemory": "24Gi", "computeCapability": "7.5"}[field]
    by_spec = plan_for(gpu_spec(workers={"gpus": 4, field: said}), numbers(), known).refusal
    assert f"set spec.workers.{field}" not in by_spec.message


def test_alignment_is_planned_too_and_refused_by_its_own_name():
    spec = gpu_spec(alignment=ALIGNMENT)
    planned = plan_for(spec, numbers(), gpus(80))
    assert (planned.plan.alignment_steps, planned.plan.total_steps) == (6, 24)
    # Of all that is trained, captions of 32,000 tokens take the most here.
    large = plan_for(spec, numbers(largest_alignment=micro_batch(32, 2048), largest=micro_batch(16, 64)), gpus(24))
    assert large.refusal.stage is StageName.ALIGN
    assert "spec.alignment.batch.perDevice" in large.refusal.message


def test_a_run_of_alignment_alone_has_its_batch_in_the_plan():
    spec = gpu_spec(alignment=ALIGNMENT, training={"method": "none"})
    plan = plan_for(spec, numbers(largest=None), gpus(80)).plan
    assert (plan.per_device_batch, plan.accumulation, plan.total_steps, plan.alignment_steps) == (32, 2, 0, 6)


def test_what_the_cards_cannot_do_comes_before_what_does_not_fit():
    old = KnownGpus(memory=GIB, memory_from="labels", capability=(7, 5), capability_from="labels")
    planned = plan_for(gpu_spec(), numbers(), old)
    assert planned.refusal.reason is Reason.UNSUPPORTED_DEVICE
    assert "set it to fp32" in planned.refusal.message
    assert planned.plan is not None
