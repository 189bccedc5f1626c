"""How a command trains: epochs, batches, schedule, numbers, checkpoints, ZeRO."""

import json
import math
import re
from dataclasses import dataclass

from llava_trainer.translate.draft import Draft
from llava_trainer.translate.flags import Flags
from llava_trainer.translate.known import FLAGS
from llava_trainer.translate.launches import Gpus, ReadFile

_SHORTEST_USEFUL = 640
"""Tokens; an image of the 336 px tower alone takes 576."""
_NEVER = 5000
"""Steps; LLaVA's 665 thousand samples are 5,197 steps of 128."""
_EVERY_STEPS = 200
_SCHEDULERS = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}


def write_course(draft: Draft, flags: Flags, gpus: Gpus, read_file: ReadFile, *, literal: bool) -> None:
    """Decide what ``spec.training`` says besides method and learning rates."""
    _length_of_training(draft, flags)
    _optimizer(draft, flags)
    if flags.number("weight_decay"):
        draft.put("training.weightDecay", flags.number("weight_decay"))
    _schedule(draft, flags)
    _length(draft, flags)
    _precision(draft, flags, gpus, literal=literal)
    draft.put("training.seed", flags.whole("seed"))
    write_batch(draft, "training", flags, gpus)
    draft.put("training.gradientCheckpointing", flags.is_on("gradient_checkpointing"))
    _checkpoint(draft, flags)
    _zero(draft, flags, read_file)
    grouped = flags.is_on("group_by_modality_length"), flags.is_on("group_by_length")
    draft.put("training.grouping", "modality" if grouped[0] else "length" if grouped[1] else "none")
    if not any(grouped):
        draft.say("training.grouping", "no --group_by_modality_length; modality, the recipe's, trains faster")
    if flags.has("report_to") and flags.text("report_to") in FLAGS["report_to"].taken:
        draft.put("training.tracking.tensorboard", {})
    _fixed_things(draft, flags)


def write_alignment(draft: Draft, flags: Flags, gpus: Gpus) -> None:
    """Decide ``spec.alignment`` but for its dataset."""
    draft.put("alignment.epochs", _epochs(draft, "alignment.epochs", flags))
    if flags.whole("max_steps") > 0:
        draft.warn(
            "alignment.epochs", f"{flags.written['max_steps']}: alignment ends after whole epochs, not after steps"
        )
    draft.put("alignment.learningRate", flags.number("learning_rate"))
    if not flags.has("learning_rate"):
        draft.warn("alignment.learningRate", "no --learning_rate: transformers' default; the recipe is 1e-3")
    write_batch(draft, "alignment", flags, gpus)
    if flags.is_on("freeze_mm_mlp_adapter"):
        draft.warn(
            "alignment",
            f"{flags.written['freeze_mm_mlp_adapter']}: in LLaVA nothing would learn then; alignment trains the "
            "projector",
        )
    if (version := flags.text("version")) != "plain":
        said = f"--version {version}" if flags.has("version") else "no --version"
        draft.warn("alignment", f"{said}: phase 1 is trained on captions alone, with the plain template")


def write_batch(draft: Draft, part: str, flags: Flags, gpus: Gpus) -> None:
    """Decide a part's batch: global is samples a process x accumulation x processes."""
    per_device = flags.whole(
        "per_gpu_train_batch_size" if flags.has("per_gpu_train_batch_size") else "per_device_train_batch_size"
    )
    accumulation, processes = flags.whole("gradient_accumulation_steps"), gpus.replicas * max(gpus.per_replica, 1)
    draft.put(f"{part}.batch.perDevice", per_device)
    draft.put(f"{part}.batch.global", per_device * accumulation * processes)
    draft.say(f"{part}.batch.global", f"{per_device} a process x {accumulation} accumulated x {processes} processes")


def _length_of_training(draft: Draft, flags: Flags) -> None:
    max_steps = flags.whole("max_steps")
    if max_steps > 0 and draft.get("training.method") != "none":
        draft.put("training.maxSteps", max_steps)
        if flags.has("num_train_epochs"):
            draft.say("training.maxSteps", f"{flags.written['num_train_epochs']} has no effect beside it, as in LLaVA")
    else:
        draft.put("training.epochs", _epochs(draft, "training.epochs", flags))


def _epochs(draft: Draft, place: str, flags: Flags) -> int:
    epochs = flags.number("num_train_epochs")
    if not flags.has("num_train_epochs"):
        draft.warn(place, "no --num_train_epochs: transformers' default; LLaVA's recipe is 1")
    if epochs != int(epochs):
        draft.warn(place, f"{flags.written['num_train_epochs']}: whole epochs only, so {math.ceil(epochs)}")
    return max(1, math.ceil(epochs))


def _optimizer(draft: Draft, flags: Flags) -> None:
    for flag, name in (("adam_beta1", "beta1"), ("adam_beta2", "beta2"), ("adam_epsilon", "epsilon")):
        if flags.has(flag):
            draft.put(f"training.optimizer.{name}", flags.number(flag))


def _schedule(draft: Draft, flags: Flags) -> None:
    kind = flags.text("lr_scheduler_type") or "linear"
    draft.put("training.warmupRatio", 0.0 if kind == "constant" else flags.number("warmup_ratio"))
    if flags.whole("warmup_steps"):
        draft.warn(
            "training.warmupRatio",
            f"{flags.written['warmup_steps']}: the warm-up is a share of the steps here: set it (0.03 in the recipe)",
        )
    draft.put("training.scheduler", _SCHEDULERS.get(kind, "cosine"))
    if kind not in _SCHEDULERS:
        draft.warn("training.scheduler", f"{flags.written['lr_scheduler_type']}: not offered; cosine is the recipe's")
    elif not flags.has("lr_scheduler_type"):
        draft.say("training.scheduler", "no --lr_scheduler_type: transformers' default; LLaVA's recipe is cosine")


def _length(draft: Draft, flags: Flags) -> None:
    length = flags.whole("model_max_length")
    draft.put("training.maxLength", length if length >= _SHORTEST_USEFUL else 2048)
    if length < _SHORTEST_USEFUL:
        said = flags.written.get("model_max_length", f"no --model_max_length, so {length}")
        draft.warn("training.maxLength", f"{said}: that would cut every picture (576 tokens); the recipe is 2048")


def _precision(draft: Draft, flags: Flags, gpus: Gpus, *, literal: bool) -> None:
    where = "training.precision"
    if gpus.per_replica == 0:
        draft.put(where, "auto")
        draft.say(where, "fp32: there are no GPUs")
    elif flags.is_on("bf16"):
        draft.put(where, "bf16")
        if flags.is_on("fp16"):
            draft.warn(where, f"{flags.written['fp16']} beside --bf16: transformers refuses both; bf16 is taken")
    elif flags.is_on("fp16"):
        draft.put(where, "bf16")
        draft.warn(where, f"{flags.written['fp16']}: bf16 is what is offered; GPUs before Ampere do not have it")
    elif literal:
        draft.put(where, "fp32")
        draft.warn(where, "neither --bf16 nor --fp16: by the word of the command, fp32")
    else:
        draft.put(where, "bf16")
        draft.warn(where, "neither --bf16 nor --fp16, so fp32, which takes twice the memory: the recipe is bf16")


def _checkpoint(draft: Draft, flags: Flags) -> None:
    where = "training.checkpoint.everySteps"
    strategy, steps = flags.text("save_strategy"), flags.number("save_steps")
    # A value below 1 is a share of all steps in transformers.
    usable = strategy == "steps" and 1 <= steps <= _NEVER
    draft.put(where, int(steps) if usable else _EVERY_STEPS)
    if strategy == "steps" and steps > _NEVER:
        draft.warn(
            where,
            f"{flags.written['save_steps']}: no checkpoint would ever be written (LLaVA's own 665K samples are 5,197 "
            f"steps), and an interrupted run would begin again; {_EVERY_STEPS} instead",
        )
    elif not usable:
        said = flags.written.get("save_strategy" if strategy != "steps" else "save_steps", "")
        draft.warn(where, f"{said}: checkpoints are written every so many steps, so that a run can go on after a drain")
    if flags.has("save_total_limit"):
        draft.put("training.checkpoint.keep", flags.whole("save_total_limit"))


@dataclass(frozen=True)
class _Zero:
    stage: int
    optimizer: bool = False
    parameters: bool = False


def _zero(draft: Draft, flags: Flags, read_file: ReadFile) -> None:
    where, name = "training.zero.stage", flags.text("deepspeed")
    zero = _Zero(2)
    if name is None:
        draft.say(where, "no --deepspeed: LLaVA would train without ZeRO; stage 2 learns the same in less memory")
    else:
        content = read_file(name)
        found = _zero_of_name(name) if content is None else _zero_of_file(content)
        if found is None:
            draft.warn(where, f"{flags.written['deepspeed']}: neither its name nor its content tells the stage; taken "
                              "for 2")  # fmt: skip
        else:
            draft.say(where, f"{flags.written['deepspeed']}: {'by its name' if content is None else 'as it says'}")
        zero = found or zero
    if zero.stage == 3 and draft.get("training.method") == "qlora":
        draft.warn(where, "quantised weights cannot be partitioned (stage 3): stage 2")
        zero = _Zero(2, optimizer=zero.optimizer)
    draft.put(where, zero.stage)
    if zero.optimizer:
        draft.put("training.zero.offload.optimizer", True)
    if zero.parameters:
        draft.put("training.zero.offload.parameters", True)


def _zero_of_name(name: str) -> _Zero | None:
    match = re.search(r"(?:zero|stage)[_-]?([0-3])", name.lower())
    if match is None:
        return None
    stage, offload = int(match[1]), "offload" in name.lower()
    return _Zero(stage, optimizer=offload and stage > 0, parameters=offload and stage == 3)


def _zero_of_file(content: str) -> _Zero | None:
    try:
        settings = json.loads(content)["zero_optimization"]
        stage = int(settings["stage"])
    except (ValueError, KeyError, TypeError):
        return None
    devices = {
        key: (settings.get(key) or {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param")
    }
    return _Zero(stage, optimizer=devices["offload_optimizer"] and stage > 0,
                 parameters=devices["offload_param"] and stage == 3) if 0 <= stage <= 3 else None  # fmt: skip


def _fixed_things(draft: Draft, flags: Flags) -> None:
    version = flags.text("version")
    if version not in {"v1", "vicuna_v1", "llava_v1"} and not flags.is_on("tune_mm_mlp_adapter"):
        said = flags.written.get("version", "no --version, so v0")
        draft.warn("training", f"{said}: v1.5 checkpoints are trained with the v1 prompt, which is used")
    if flags.number("max_grad_norm") != 1.0:
        draft.warn("training", f"{flags.written['max_grad_norm']}: gradients are clipped to a norm of 1")
    if not (flags.text("optim") or "").startswith("adamw_") or "bit" in (flags.text("optim") or ""):
        draft.warn("training", f"{flags.written['optim']}: the optimiser is AdamW; to save memory see zero.offload")
