"""Proves the memory plan's arithmetic: published counts, how it grows and shrinks, and that its remedies fit."""

from dataclasses import replace
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.memory import (
    Prepared,
    Workload,
    accumulation,
    batch_of,
    count_lora,
    count_parameters,
    count_trained,
    find_remedies,
    merging_bytes,
    num_steps,
    plan_activations,
    plan_memory,
    plan_states,
    plan_storage,
    workload_of,
)
from llava_api.memory.answering import plan_answering
from llava_api.model_facts import ModelFacts, TransformerShape
from llava_api.quantities import parse_bytes
from llava_api.report import MicroBatch
from llava_api.spec import Spec

GIB = 1 << 30
LONGEST = 2048


def make_7b() -> ModelFacts:
    return ModelFacts(
        language_model=TransformerShape(layers=32, hidden=4096, intermediate=11008, heads=32, key_value_heads=32),
        vocabulary=32064,
        vision_tower=TransformerShape(layers=24, hidden=1024, intermediate=4096, heads=16, key_value_heads=16),
        image_size_px=336,
        patch_size_px=14,
        tokens_per_image=576,
        feature_layer=(-2,),
        feature_strategy="default",
    )


def make_spec(*, training: dict[str, Any] | None = None, **parts: Any) -> Spec:
    base: dict[str, Any] = {
        "model": {"source": "pvc://models/llava"},
        "dataset": {"source": "pvc://data/set", "format": "llava", "file": "train.json"},
        "training": {"batch": {"perDevice": 16, "global": 128}, **(training or {})},
        "workers": {"gpus": 8},
    }
    return Spec.model_validate({**base, **parts})


def make_work(**changes: Any) -> Workload:
    whole = {"method": "lora", "rows": 16, "length": 2048, "pictures": 16, "supervised": 8192, "world_size": 8}
    return Workload(**{**whole, **changes})


ALIGNMENT = {"dataset": {"source": "pvc://d/", "format": "llava", "file": "a.json"}, "freshProjector": True}


@pytest.mark.parametrize(
    ("training", "samples", "checkpoint", "num_kept", "num_at_a_time"),
    [
        ({}, 128 * 5, 340_795_392 * 14, 2, 3),
        ({}, 128 * 3, 340_795_392 * 14, 2, 2),
        ({}, 128, 340_795_392 * 14, 0, 0),
        ({"method": "full"}, 128 * 9, 6_759_919_616 * 12, 2, 3),
    ],
)
def test_storage_is_the_checkpoints_at_a_time_or_those_kept_with_results(
    training: dict[str, Any], samples: int, checkpoint: int, num_kept: int, num_at_a_time: int
):
    spec = make_spec(training={"checkpoint": {"everySteps": 1}, **training})
    plan = plan_storage(spec, make_7b(), {StageName.TRAIN: samples})
    assert (plan.checkpoint, plan.checkpoints) == (checkpoint, num_at_a_time * checkpoint)
    result = checkpoint // (6 if training else 7)
    # What an earlier attempt has left of a stage's result lies there until this one's is whole.
    while_training = result + max(num_at_a_time * checkpoint, num_kept * checkpoint + result)
    assert plan.total == max(while_training, num_kept * checkpoint + result + 2 * 2 * 7_063_427_072)


@pytest.mark.parametrize(("dtype", "number_bytes"), [("bfloat16", 2), ("float16", 2), ("float32", 4)])
def test_the_merged_model_lies_there_in_its_own_format(dtype: str, number_bytes: int):
    plan = plan_storage(make_spec(merge={"dtype": dtype}), make_7b(), {StageName.TRAIN: 128})
    # The adapter and the projector, in bf16, and the whole model, of two attempts.
    assert plan.total == 340_795_392 * 2 + 2 * 7_063_427_072 * number_bytes


def test_checkpoints_of_alignment_lie_there_while_training_makes_its_own():
    spec = make_spec(alignment=ALIGNMENT, training={"checkpoint": {"everySteps": 1, "keep": 1}})
    samples = {StageName.ALIGN: 10_000, StageName.TRAIN: 10_000}
    both = plan_storage(spec, make_7b(), samples)
    alone = plan_storage(make_spec(training={"checkpoint": {"everySteps": 1, "keep": 1}}), make_7b(), samples)
    # One checkpoint of the projector (14 bytes a number), and the projector itself.
    assert both.total - alone.total == 20_979_712 * 16
    assert both.checkpoint == alone.checkpoint


def make_prepared(length: int, *, rows: int = 16) -> Prepared:
    """Rows of one length, with a picture each; all else is learned."""
    supervised = rows * max(0, length - 576)
    return Prepared(largest=MicroBatch(rows=rows, tokens=rows * length, pictures=rows, supervised=supervised))


def total(spec: Spec, stage: StageName = StageName.TRAIN) -> int:
    model = make_7b()
    return plan_memory(model, workload_of(spec, stage, model, make_prepared(LONGEST))).total


def test_merging_asks_for_what_7b_and_13b_take():
    """By hand: 2.5 layers of 4 x 4096 x 4096 + 3 x 4096 x 11008 numbers, of 4 bytes; a process and its allowance."""
    of_13b = TransformerShape(layers=40, hidden=5120, intermediate=13824, heads=40, key_value_heads=40)
    small = merging_bytes(make_7b())
    large = merging_bytes(make_7b().model_copy(update={"language_model": of_13b}))
    assert small == GIB + 10 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + GIB // 2
    assert (round(small / GIB, 1), round(large / GIB, 1)) == (3.4, 4.5)
    asked = parse_bytes(make_spec().merge.resources.requests["memory"])
    assert large < asked == parse_bytes(make_spec().merge.resources.limits["memory"]) < 1.5 * large


def test_a_large_vocabulary_counts_where_layers_are_small():
    text = TransformerShape(layers=4, hidden=1024, intermediate=2048, heads=16, key_value_heads=16)
    model = make_7b().model_copy(update={"language_model": text, "vocabulary": 128_256})
    assert merging_bytes(model) == GIB + 4 * (2 * 128_256 * 1024 + 2 * 1024 * 2048) + GIB // 2


def test_the_numbers_of_llava_7b_are_the_published_ones():
    counts = count_parameters(make_7b())
    # llava-hf/llava-1.5-7b-hf's index says 14,126,854,144 bytes in two bytes each.
    assert counts.model == 7_063_427_072
    assert count_lora(make_7b().language_model, 128) == 319_815_680
    assert counts.projector == 20_979_712


@pytest.mark.parametrize(
    ("stage", "shared"), [(0, ()), (1, ("optimizer",)), (2, ("optimizer", "gradients")),
                          (3, ("optimizer", "gradients", "weights"))]
)  # fmt: skip
def test_each_zero_stage_shares_out_one_thing_more(stage: int, shared: tuple[str, ...]):
    for number_bytes in (2, 4):
        one, eight = (
            plan_states(make_7b(), make_work(zero_stage=stage, world_size=size, number_bytes=number_bytes))
            for size in (1, 8)
        )
        # In bf16 the engine runs stage 1 in the place of 0.
        expected = (*shared, "optimizer") if stage == 0 and number_bytes == 2 else shared
        for name in ("weights", "gradients", "optimizer"):
            parts = getattr(one, name) / getattr(eight, name)
            assert parts == pytest.approx(8 if name in expected else 1, rel=1e-6), (name, number_bytes)


def test_offloading_takes_off_the_device_what_it_names():
    plain = plan_states(make_7b(), make_work(zero_stage=3))
    optimizer = plan_states(make_7b(), make_work(zero_stage=3, offload_optimizer=True))
    partly = plan_states(make_7b(), make_work(zero_stage=2, offload_optimizer=True))
    both = plan_states(make_7b(), make_work(zero_stage=3, offload_optimizer=True, offload_parameters=True))
    assert (optimizer.optimizer, optimizer.gradients) == (0, 0)
    assert optimizer.weights == plain.weights
    assert both.weights == 0
    # ZeRO-2 adds gradients up in fp32 on the device, wherever the optimiser is; the largest passes through a buffer.
    largest = 4096 * 4096
    assert (partly.optimizer, partly.gradients) == (0, 340_795_392 * 4 // 8 + 2 * largest)
    assert plain.offloaded == 0
    assert optimizer.offloaded == 340_795_392 * 20 // 8
    assert both.offloaded == optimizer.offloaded + plain.weights
    assert partly.offloaded == 340_795_392 * (16 + 2) // 8 + 2 * largest


def test_nf4_takes_a_little_more_than_half_a_byte_a_weight():
    counts = count_parameters(make_7b())
    quantized = counts.layer * 32
    saved = plan_states(make_7b(), make_work()).weights
    for double, bits in ((True, 4.127), (False, 4.5)):
        nf4 = plan_states(make_7b(), make_work(method="qlora", double_quantization=double)).weights
        assert (2 * quantized - (saved - nf4)) * 8 / quantized == pytest.approx(bits, rel=1e-3)


@pytest.mark.parametrize(
    "lighter",
    [
        {"rows": 8, "pictures": 8},
        {"length": 1024},
        {"dropout": 0.0},
        {"method": "qlora"},
        {"zero_stage": 3},
        {"offload_optimizer": True},
    ],
)
def test_what_should_take_less_does(lighter: dict[str, Any]):
    assert plan_memory(make_7b(), make_work(**lighter)).total < plan_memory(make_7b(), make_work()).total


def test_masks_take_memory_in_every_layer_that_is_kept():
    def total(masked: bool) -> int:
        return plan_activations(make_7b(), make_work(masked=masked, gradient_checkpointing=False)).total

    assert total(True) - total(False) == 16 * 2048**2 * (1 + 32 * 2)


@pytest.mark.parametrize(("checkpointing", "bytes_a_pair"), [(True, 12), (False, 31 * (4 + 2) + 12)])
def test_eager_attention_grows_with_pairs_of_tokens_in_one_layer_or_in_all(checkpointing: bool, bytes_a_pair: int):
    """As many tokens in half the rows make twice the pairs. Kept in fp32 and bf16; in work thrice in fp32."""
    rows = make_work(rows=2, length=4096, pictures=2, gradient_checkpointing=checkpointing, eager=True)
    row = replace(rows, rows=1, length=8192)
    more = plan_activations(make_7b(), row).total - plan_activations(make_7b(), rows).total
    # Over 32 heads; the mask, of 2 bytes, is the same for all of them.
    assert more == 2 * 4096**2 * (32 * bytes_a_pair + 2)


def test_checkpointing_saves_most_of_the_activations():
    kept = plan_memory(make_7b(), make_work(rows=2, pictures=2, gradient_checkpointing=False))
    again = plan_memory(make_7b(), make_work(rows=2, pictures=2))
    assert again.total < kept.total / 2


def test_a_full_model_peaks_in_the_step_where_its_batch_is_small():
    small = {"rows": 1, "length": 64, "pictures": 0, "supervised": 8}
    plan = plan_memory(make_7b(), make_work(method="full", world_size=1, zero_stage=3, **small))
    assert "step" in {term.name for term in plan.terms}
    assert sum(term.size for term in plan.terms) == plan.total


def test_terms_name_the_allowance():
    names = [term.name for term in plan_memory(make_7b(), make_work()).terms]
    assert names == ["weights", "gradients", "optimizer", "communication", "activations", "pictures",
                     "allowance (CUDA context, fragmentation)"]  # fmt: skip


def test_on_a_cpu_there_is_no_context_of_cuda():
    names = [term.name for term in plan_memory(make_7b(), make_work(on_gpu=False)).terms]
    assert not any("allowance" in name for name in names)
    assert not workload_of(make_spec(workers={"gpus": 0}), StageName.TRAIN, make_7b(), make_prepared(64)).on_gpu


def test_a_workload_takes_what_the_spec_says():
    spec = make_spec(
        training={"method": "qlora", "quantization": {"double": False}, "attention": "flash_attention_2",
                  "lora": {"rank": 64, "alpha": 1, "dropout": 0}, "gradientCheckpointing": False,
                  "zero": {"stage": 1, "offload": {"optimizer": True}}},
        workers={"gpus": 4, "replicas": 2},
    )  # fmt: skip
    assert workload_of(spec, StageName.TRAIN, make_7b(), make_prepared(1000)) == Workload(
        method="qlora", rows=16, length=1000, pictures=16, supervised=16 * 1000 - 16 * 576, world_size=8, rank=64,
        dropout=0, number_bytes=2, double_quantization=False, gradient_checkpointing=False, masked=False, zero_stage=1,
        offload_optimizer=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("attention", "precision", "gpus", "has_flash", "masks"),
    [
        # An older image; this one with a row for each sample; packed; packed, with heads that varlen_attn refuses.
        ("auto", "auto", 8, True, (False, False, False, False)),
        ("auto", "auto", 8, False, (True, False, False, True)),
        ("auto", "fp32", 8, True, (True, False, True, True)),
        ("auto", "auto", 0, True, (True, False, True, True)),
        ("sdpa", "auto", 8, True, (True, False, True, True)),
        ("flash_attention_2", "auto", 8, False, (False, False, False, False)),
        ("eager", "auto", 8, True, (True, True, True, True)),
    ],
)
def test_automatic_attention_is_what_the_trainer_makes_of_it(
    attention: str, precision: str, gpus: int, has_flash: bool, masks: tuple[bool, bool, bool, bool]
):
    odd = make_7b().model_copy(update={"language_model": make_7b().language_model.model_copy(update={"hidden": 4128})})
    cases = [(False, False, make_7b()), (True, False, make_7b()), (True, True, make_7b()), (True, True, odd)]
    for (omits_masks, packing, model), masked in zip(cases, masks, strict=True):
        spec = make_spec(
            training={"attention": attention, "precision": precision, "packing": packing}, workers={"gpus": gpus}
        )
        prepared = Prepared(has_flash=has_flash, omits_masks=omits_masks)
        work = workload_of(spec, StageName.TRAIN, model, prepared)
        assert (work.masked, work.eager) == (masked, attention == "eager"), (omits_masks, packing)


def test_alignment_trains_the_projector_with_a_batch_of_its_own():
    alignment = {
        "dataset": {"source": "pvc://data/pairs", "format": "llava", "file": "a.json"},
        "batch": {"perDevice": 32, "global": 256},
    }
    spec = make_spec(alignment=alignment)
    work = workload_of(spec, StageName.ALIGN, make_7b(), make_prepared(700, rows=32))
    assert (work.method, work.rows, work.length) == ("projector", 32, 700)
    assert (accumulation(spec, StageName.ALIGN), accumulation(spec, StageName.TRAIN)) == (1, 1)
    assert num_steps(spec, StageName.ALIGN, 257) == 2


@pytest.mark.parametrize(("packing", "rows", "length"), [(False, 16, 2048), (True, 8, 4096)])
def test_what_is_unknown_counts_as_all_that_the_limits_allow(packing: bool, rows: int, length: int):
    work = workload_of(make_spec(training={"packing": packing}), StageName.TRAIN, make_7b(), Prepared())
    assert (work.rows, work.length) == (rows, length)
    assert (work.pictures, work.supervised) == (16 * 2048 // 576, 16 * 2048)


def packed(per_device: int) -> Spec:
    return make_spec(training={"packing": True, "batch": {"perDevice": per_device, "global": 240}}, workers={"gpus": 1})


def test_packed_rows_are_those_that_prepare_has_found_with_all_their_pictures():
    largest = MicroBatch(rows=3, tokens=3 * 2031, pictures=9, supervised=800)
    work = workload_of(packed(3), StageName.TRAIN, make_7b(), Prepared(largest=largest))
    assert (work.rows, work.length, work.pictures, work.supervised) == (3, 2031, 9, 800)


@pytest.mark.parametrize(("per_device", "rows", "length", "pictures"), [(2, 2, 3000, 9), (1, 1, 2048, 3)])
def test_a_smaller_packed_batch_holds_what_goes_into_it(per_device: int, rows: int, length: int, pictures: int):
    largest = MicroBatch(rows=2, tokens=2 * 3000, pictures=9, supervised=800)
    work = workload_of(packed(per_device), StageName.TRAIN, make_7b(), Prepared(largest=largest))
    assert work.tokens >= min(6000, per_device * 2048)
    assert (work.rows, work.pictures) == (rows, min(pictures, work.tokens // 576))
    assert work.length <= length


def test_a_smaller_batch_has_fewer_rows_as_long_and_may_have_the_most_pictures():
    largest = MicroBatch(rows=4, tokens=4 * 1500, pictures=5, supervised=900)
    spec = make_spec(training={"batch": {"perDevice": 2, "global": 128}})
    work = workload_of(spec, StageName.TRAIN, make_7b(), Prepared(largest=largest))
    assert (work.rows, work.length, work.pictures, work.supervised) == (2, 1500, 5, 900)


@pytest.mark.parametrize(("precision", "gpus", "number_bytes"), [("auto", 8, 2), ("auto", 0, 4), ("fp32", 8, 4)])
def test_numbers_are_as_wide_as_the_precision(precision: str, gpus: int, number_bytes: int):
    spec = make_spec(training={"precision": precision}, workers={"gpus": gpus, "replicas": 1})
    assert workload_of(spec, StageName.TRAIN, make_7b(), make_prepared(64)).number_bytes == number_bytes


def remedies(spec: Spec, available: int, stage: StageName = StageName.TRAIN) -> dict[tuple[str, ...], int]:
    found = find_remedies(
        spec,
        stage,
        make_7b(),
        prepared=make_prepared(LONGEST, rows=batch_of(spec, stage).per_device),
        available=available,
    )
    assert all(remedy.total <= available for remedy in found)
    return {remedy.changes: remedy.accumulation for remedy in found}


def test_no_remedy_is_one_that_the_api_refuses():
    """Answers while it trains do not go with ZeRO-3."""
    asked = asking(make_spec(), 64)
    for available in (12, 14, 16, 24):
        assert any("zero.stage" in change for changes in remedies(make_spec(), available * GIB) for change in changes)
        assert not any("zero.stage" in change for changes in remedies(asked, available * GIB) for change in changes)


def test_remedies_name_values_that_fit_and_keep_the_global_batch():
    assert remedies(make_spec(), 24 * GIB) == {
        ("training.batch.perDevice 4",): 4,
        ("training.zero.stage 3", "training.batch.perDevice 8"): 2,
        ("training.method qlora", "training.batch.perDevice 8"): 2,
        ("training.zero.stage 3", "training.zero.offload.optimizer true", "training.zero.offload.parameters true"): 1,
    }


def test_checkpointing_is_offered_where_it_is_off():
    found = remedies(make_spec(training={"gradientCheckpointing": False}), 80 * GIB)
    assert ("training.gradientCheckpointing true",) in found


def test_attention_that_is_not_written_out_is_offered_where_it_is():
    found = remedies(make_spec(training={"attention": "eager"}), 48 * GIB)
    assert found[("training.attention sdpa",)] == 1
    assert not any("sdpa" in change for changes in remedies(make_spec(), 24 * GIB) for change in changes)


def test_a_full_model_may_be_offloaded_or_adapted_instead():
    found = remedies(make_spec(training={"method": "full"}, workers={"gpus": 1}), 80 * GIB)
    assert found == {("training.zero.offload.optimizer true",): 8, ("training.method lora",): 8}
    # Under ZeRO-2 gradients stay on the GPU, 25 GiB of them in fp32.
    smaller = remedies(make_spec(training={"method": "full"}, workers={"gpus": 1}), 40 * GIB)
    assert smaller == {
        ("training.method lora",): 8,
        ("training.zero.stage 3", "training.zero.offload.optimizer true"): 8,
    }


def test_alignment_has_remedies_of_its_own():
    alignment = {"dataset": {"source": "pvc://d/", "format": "llava", "file": "a.json"}}
    found = remedies(make_spec(alignment=alignment), 24 * GIB, StageName.ALIGN)
    assert ("alignment.batch.perDevice 8",) in found
    assert not any("qlora" in change for changes in found for change in changes)


def test_nothing_fits_into_next_to_nothing():
    assert remedies(make_spec(), 2 * GIB) == {}


def test_the_plan_of_the_recipe_fits_the_card_that_it_was_made_for():
    # LLaVA-1.5 7B was fine-tuned with LoRA at 16 samples a device on GPUs of 80 GB, and of 40 GB with fewer.
    assert total(make_spec()) < 80 * GIB
    assert total(make_spec(training={"batch": {"perDevice": 8, "global": 128}})) < 40 * GIB


def test_steps_that_are_given_count_in_place_of_epochs_but_not_in_alignment():
    spec = make_spec(training={"maxSteps": 7, "epochs": 3}, alignment=ALIGNMENT)
    assert [num_steps(spec, StageName.TRAIN, samples) for samples in (1, 10_000, 0)] == [7, 7, 0]
    assert num_steps(spec, StageName.ALIGN, 257) == 2


def test_an_adapter_on_fewer_layers_and_a_frozen_projector_are_planned_smaller():
    def trained(**training: Any) -> int:
        spec = make_spec(training=training)
        return count_trained(make_7b(), workload_of(spec, StageName.TRAIN, make_7b(), Prepared()))

    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert trained() - trained(projector="frozen") == projector
    # 32 layers, rank 128, two squares of 4096.
    assert trained(projector="frozen", lora={"targets": ["q_proj", "v_proj"]}) == 32 * 128 * 2 * (4096 + 4096)


# --- answers to held-out questions while it trains


def asking(spec: Spec, tokens: int) -> Spec:
    validation = {"every_steps": 10, "answers": {"questions": 4, "max_new_tokens": tokens}}
    training = spec.training.model_validate(spec.training.model_dump() | {"validation": validation})
    return spec.model_copy(update={"training": training})


def test_answers_take_the_longest_prompt_and_what_is_said() -> None:
    spec = asking(make_spec(training={"batch": {"perDevice": 1, "global": 8}}), 64)
    work = workload_of(spec, StageName.TRAIN, make_7b(), make_prepared(1500, rows=1))
    assert work.answer_tokens == 1564
    # Keys and values: 32 layers of twice 4,096 numbers of two bytes a token.
    assert plan_answering(make_7b(), work) > 1564 * 32 * 2 * 4096 * 2
    assert plan_answering(make_7b(), work) < 1.6 * 1564 * 32 * 2 * 4096 * 2
    packed_longer = workload_of(spec, StageName.TRAIN, make_7b(), make_prepared(4000, rows=1))
    assert packed_longer.answer_tokens <= spec.training.max_length + 64


def test_without_answers_the_plan_is_what_it_was() -> None:
    spec = make_spec(training={"batch": {"perDevice": 1, "global": 8}})
    work = workload_of(spec, StageName.TRAIN, make_7b(), make_prepared(1500, rows=1))
    assert work.answer_tokens == 0
    assert plan_answering(make_7b(), work) == 0


def test_answers_count_where_they_take_more_than_a_step() -> None:
    """Short samples one at a time take little; a large batch takes more than any answer."""
    spec = asking(make_spec(training={"batch": {"perDevice": 1, "global": 8}}), 256)
    small = workload_of(spec, StageName.TRAIN, make_7b(), make_prepared(600, rows=1))
    large = workload_of(asking(make_spec(), 256), StageName.TRAIN, make_7b(), make_prepared(2048))
    for work in (small, large):
        without = plan_memory(make_7b(), replace(work, answer_tokens=0)).total
        more = plan_memory(make_7b(), work).total - without
        assert more >= 0
        assert (more > 0) == any(term.name == "answers" for term in plan_memory(make_7b(), work).terms)
    assert plan_memory(make_7b(), large) == plan_memory(make_7b(), replace(large, answer_tokens=0))


@pytest.mark.parametrize(
    ("taken", "seen"),
    [((-2,), 23), ((-1,), 24), ((24,), 24), ((0,), 0), ((-2, -5, 7), 23), ((), 0), ((99,), 24), ((-99,), 0)],
)
def test_the_layers_of_a_tower_that_are_seen(taken: tuple[int, ...], seen: int):
    """Whatever a pod says of its model, an operator calculates with something."""
    assert make_7b().model_copy(update={"feature_layer": taken}).seen_layers == seen


def test_a_tower_that_learns_is_planned_up_to_its_features():
    def planned(**training: Any) -> tuple[int, int]:
        spec = make_spec(training=training)
        work = workload_of(spec, StageName.TRAIN, make_7b(), Prepared())
        return count_trained(make_7b(), work), plan_memory(make_7b(), work).total

    (usual, frozen_total), (with_tower, total) = planned(), planned(visionTower={"mode": "full"})
    # openai/clip-vit-large-patch14-336 has 303,507,456 numbers; a layer of it 12,596,224, and a norm 2,048.
    assert with_tower - usual == 303_507_456 - 12_596_224 - 2_048
    # PEFT's copy in bf16, and a share of eight in fp32: original, moments, gradient.
    assert total - frozen_total > (with_tower - usual) * (2 + 16 // 8)
    spec = make_spec(training={"visionTower": {"mode": "full"}}, alignment=ALIGNMENT)
    assert not workload_of(spec, StageName.ALIGN, make_7b(), Prepared()).learns_tower
