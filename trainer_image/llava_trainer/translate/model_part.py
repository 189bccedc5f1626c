"""Which model a command starts from, and where its flags contradict that model."""

import re

from llava_trainer.translate.draft import Draft
from llava_trainer.translate.errors import TranslateError
from llava_trainer.translate.flags import Flags
from llava_trainer.translate.places import Claim, is_hub_name, tidy
from llava_trainer.translate.shell import unresolved

TOWER_336 = "openai/clip-vit-large-patch14-336"
_LANGUAGE_MODELS = ("vicuna", "llama", "mistral", "mpt", "opt-", "qwen", "gpt")


def is_llava(name: str) -> bool:
    """Whether a checkpoint's name says that it is a LLaVA, and no language model."""
    return "llava" in name.rstrip("/").rsplit("/", 1)[-1].lower()


def write_model(draft: Draft, flags: Flags, claim: Claim, *, aligned_by: Flags | None) -> None:
    """Decide ``spec.model``.

    Args:
        draft: what to write to.
        flags: of the command; of its fine-tuning where there are two.
        claim: what holds local models.
        aligned_by: the alignment before it, in the same text.

    Raises:
        TranslateError: no model, or a language model that nothing aligns.
    """
    name = (aligned_by or flags).text("model_name_or_path")
    if name is None or not (aligned_by or flags).has("model_name_or_path"):
        raise TranslateError(
            f"line {flags.line}: the command has no --model_name_or_path: name the model to start from"
        )
    projector = flags.text("pretrain_mm_mlp_adapter")
    aligns = flags.is_on("tune_mm_mlp_adapter") or aligned_by is not None
    if is_llava(name):
        _from_checkpoint(draft, flags, claim, name)
    elif aligns or projector:
        draft.put("model.languageModel", _source(draft, "model.languageModel", name, claim))
        _assembled_tower(draft, aligned_by or flags, claim)
    elif any(known in name.lower() for known in _LANGUAGE_MODELS):
        raise TranslateError(
            f"line {flags.line}: --model_name_or_path {name} is a language model, and nothing gives it an aligned "
            "projector: name a LLaVA checkpoint (liuhaotian/llava-v1.5-7b), or the projector by "
            "--pretrain_mm_mlp_adapter, or put the alignment (pretrain.sh) before this command"
        )
    else:
        draft.warn("model.source", f"{name} is taken for a LLaVA v1.5 checkpoint; the command does not say what it is")
        _from_checkpoint(draft, flags, claim, name)
    if projector and not aligned_by:
        draft.put("model.projector", _source(draft, "model.projector", projector, claim))
    if aligned_by:
        _check_handed_on(draft, flags, aligned_by)
    if claim.is_placeholder and "pvc://" in str(draft.values["model"]):
        draft.warn(
            "model",
            f"REPLACE {claim.name} by a claim that holds these folders (or translate again with --model-claim CLAIM)",
        )
    _check_connection(draft, aligned_by or flags)


def _from_checkpoint(draft: Draft, flags: Flags, claim: Claim, name: str) -> None:
    draft.put("model.source", _source(draft, "model.source", name, claim))
    if flags.is_on("tune_mm_mlp_adapter"):
        draft.put("alignment.freshProjector", True)
        draft.warn(
            "alignment.freshProjector",
            "the checkpoint has an aligned projector, which the learning rate of phase 1 would damage: a new one is "
            "aligned; remove alignment to keep the old one",
        )
    tower = flags.text("vision_tower")
    if tower is None:
        draft.warn(
            "model.source", "no --vision_tower: LLaVA would train without pictures; the checkpoint's own is used"
        )
    elif "336" not in tower:
        draft.warn(
            "model.source",
            f"--vision_tower {tower} names the 224 px tower, the checkpoint trains with 336 px: keeping 336",
        )
    if name.startswith("llava-hf/"):
        draft.say("model.source", "the vision tower is in the checkpoint")
        return
    keeps = tower is not None and "336" in tower
    wanted = tower if keeps and tower else TOWER_336
    draft.put("model.visionTower", _source(draft, "model.visionTower", wanted, claim))
    draft.say("model.visionTower", "read only if the checkpoint does not carry its own")


def _assembled_tower(draft: Draft, flags: Flags, claim: Claim) -> None:
    tower = flags.text("vision_tower")
    if tower is None:
        draft.warn("model.visionTower", f"no --vision_tower: LLaVA would train without pictures; {TOWER_336} is v1.5's")
    draft.put("model.visionTower", _source(draft, "model.visionTower", tower or TOWER_336, claim))
    if tower and "336" not in tower:
        draft.say("model.visionTower", f"224 px, 256 tokens a picture; LLaVA v1.5 takes {TOWER_336}: 576 tokens")


def _check_connection(draft: Draft, flags: Flags) -> None:
    """What LLaVA would save as the model's configuration, against what v1.5 is."""
    if not flags.has("mm_projector_type"):
        draft.warn("model", "no --mm_projector_type: the saved configuration would say linear; v1.5's is mlp2x_gelu, "
                            "which is kept")  # fmt: skip
    elif flags.text("mm_projector_type") != "mlp2x_gelu":
        draft.warn("model", f"{flags.written['mm_projector_type']}: only v1.5's mlp2x_gelu is offered")
    if flags.whole("mm_vision_select_layer") != -2:
        said = flags.written.get("mm_vision_select_layer", "no --mm_vision_select_layer, so the last layer")
        draft.warn("model", f"{said}: v1.5's features are those of layer -2, which is kept")
    if flags.text("mm_vision_select_feature") != "patch":
        draft.warn("model", f"{flags.written['mm_vision_select_feature']}: v1.5 drops the class token (patch), as here")
    if flags.is_on("mm_use_im_start_end"):
        draft.warn("model", f"{flags.written['mm_use_im_start_end']}: v1.5 puts no tokens around a picture; none are "
                            "added")  # fmt: skip
    if flags.is_on("mm_use_im_patch_token"):
        said = flags.written.get("mm_use_im_patch_token", "no --mm_use_im_patch_token False")
        draft.say("model", f"{said}: LLaVA would add a token to the vocabulary that nothing uses; none is added")


def _check_handed_on(draft: Draft, flags: Flags, aligned_by: Flags) -> None:
    """Whether the second command goes on from what the first one makes."""
    first, second = aligned_by.text("model_name_or_path"), flags.text("model_name_or_path")
    if flags.has("model_name_or_path") and first != second:
        draft.warn("model", f"the alignment starts from {first} and the training from {second}: one run has one model, "
                            "the former")  # fmt: skip
    projector, made = flags.text("pretrain_mm_mlp_adapter"), aligned_by.text("output_dir")
    if projector and made and not tidy(projector).startswith(tidy(made)):
        draft.warn("alignment", f"training takes the projector of this alignment, not {projector}")


def _source(draft: Draft, place: str, name: str, claim: Claim) -> str:
    for variable in unresolved(name):
        draft.warn(
            place, f"REPLACE {tidy('$' + variable)}: the text gives ${variable} no value (--set {variable}=VALUE)"
        )
    if is_hub_name(name):
        return f"hf://{name}"
    if re.match(r"(s3|https)://", name):
        return name
    draft.say(place, f"{name} on the machine that the command was written for")
    return claim.source(tidy(name))
