"""Which weights a command trains, and at which learning rates."""

from llava_trainer.translate.draft import Draft
from llava_trainer.translate.flags import Flags

_FULL_RATE = 2e-5
_LORA_RATE = 2e-4
_PROJECTOR_RATE = 2e-5


def write_method(draft: Draft, flags: Flags, *, merges: bool, literal: bool) -> None:
    """Decide method, adapter, quantisation and learning rates of ``spec.training``.

    Args:
        draft: what to write to.
        flags: of the command.
        merges: whether the text merges a LoRA afterwards.
        literal: whether to take the command by its word where the rest of the text contradicts it.
    """
    bits = flags.whole("bits")
    quantised = bits in {4, 8}
    meant = merges and not flags.is_on("lora_enable") and not quantised and not literal
    draft.put("training.method", "qlora" if quantised else "lora" if flags.is_on("lora_enable") or meant else "full")
    _explain_method(draft, flags, merges=merges, literal=literal, meant=meant)
    if draft.get("training.method") != "full":
        _lora(draft, flags, meant=meant)
    if quantised:
        _quantization(draft, flags)
    _rates(draft, flags, meant=meant)
    _frozen_parts(draft, flags)


def _explain_method(draft: Draft, flags: Flags, *, merges: bool, literal: bool, meant: bool) -> None:
    bits = flags.whole("bits")
    if meant:
        draft.warn(
            "training.method",
            "the command trains every weight (no --lora_enable True), yet the text merges a LoRA afterwards: LoRA is "
            "what was meant; --literal gives full at 2e-5",
        )
    elif merges and literal and draft.get("training.method") == "full":
        draft.warn(
            "training.method",
            "by the word of the command (--literal): it never enables LoRA, so the merge line would find nothing to "
            "merge; drop --literal for LoRA",
        )
    if bits in {4, 8} and not flags.is_on("lora_enable"):
        draft.warn(
            "training.method",
            f"{flags.written['bits']} without --lora_enable True: LLaVA cannot train quantised weights; qlora trains "
            "an adapter on them",
        )
    if bits == 8:
        draft.warn("training.method", "8 bits are not offered: qlora takes 4 (NF4)")
    elif bits not in {4, 8, 16}:
        draft.warn("training.method", f"{flags.written['bits']}: LLaVA knows 16, 8 and 4; taken for 16")


def _lora(draft: Draft, flags: Flags, *, meant: bool) -> None:
    recipe = {"lora_r": 128, "lora_alpha": 256, "lora_dropout": 0.05}
    names = {"lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
    for flag, name in names.items():
        value = recipe[flag] if meant and not flags.has(flag) else flags.number(flag)
        draft.put(f"training.lora.{name}", value)
    left_out = [f"--{flag}" for flag in ("lora_r", "lora_alpha") if not flags.has(flag)]
    if meant:
        draft.say("training.lora", "LLaVA v1.5's recipe")
    elif left_out:
        draft.say(
            "training.lora",
            f"no {' and no '.join(left_out)}: LLaVA's defaults are 64 and 16; its published recipe has 128 and 256",
        )
    if flags.text("lora_bias") != "none":
        draft.warn("training.lora", f"{flags.written['lora_bias']}: biases are not trained")


def _quantization(draft: Draft, flags: Flags) -> None:
    draft.put("training.quantization.double", flags.is_on("double_quant"))
    if flags.text("quant_type") != "nf4":
        draft.warn("training.quantization", f"{flags.written['quant_type']}: NF4 is what is offered, and the default")


def _rates(draft: Draft, flags: Flags, *, meant: bool) -> None:
    rate = flags.number("learning_rate")
    where = "training.learningRate"
    if meant and (not flags.has("learning_rate") or rate == _FULL_RATE):
        said = flags.written.get("learning_rate", "no --learning_rate")
        draft.put(where, _LORA_RATE)
        draft.warn(where, f"{said}: that is the recipe of full fine-tuning; LoRA's is 2e-4")
    else:
        draft.put(where, rate)
        if not flags.has("learning_rate"):
            draft.warn(
                where, "no --learning_rate: transformers' default; LLaVA's recipe is 2e-4 for LoRA, 2e-5 for full"
            )
        elif draft.get("training.method") != "full" and rate == _FULL_RATE:
            draft.warn(where, "2e-5 is the recipe of full fine-tuning; LoRA's is 2e-4")
    where = "training.projectorLearningRate"
    if flags.is_on("freeze_mm_mlp_adapter"):
        return
    if flags.has("mm_projector_lr"):
        draft.put(where, flags.number("mm_projector_lr"))
    elif meant:
        draft.put(where, _PROJECTOR_RATE)
        draft.say(where, "LLaVA v1.5's recipe")
    else:
        draft.put(where, draft.get("training.learningRate"))
        draft.say(where, "no --mm_projector_lr: LLaVA then trains the projector at the same rate")


def _frozen_parts(draft: Draft, flags: Flags) -> None:
    if flags.is_on("freeze_backbone"):
        draft.warn("training.method", f"{flags.written['freeze_backbone']}: not offered; the language model learns")
    if flags.is_on("freeze_mm_mlp_adapter"):
        draft.put("training.projector", "frozen")
