"""Which data a command trains on."""

from llava_trainer.translate.draft import Draft
from llava_trainer.translate.errors import TranslateError
from llava_trainer.translate.flags import Flags
from llava_trainer.translate.places import Claim, DataFolder, common_folder, tidy
from llava_trainer.translate.shell import unresolved


def write_dataset(draft: Draft, place: str, flags: Flags, claim: Claim, *, literal: bool) -> None:
    """Decide a dataset.

    Args:
        draft: what to write to.
        place: ``dataset`` or ``alignment.dataset``.
        flags: of the command that reads it.
        claim: what holds it.
        literal: whether to take the command by its word where it leaves v1.5's recipe.

    Raises:
        TranslateError: nothing says what to train on.
    """
    data_path, image_folder = flags.text("data_path"), flags.text("image_folder")
    if data_path is None:
        raise TranslateError(f"line {flags.line}: the command has no --data_path: nothing says what to train on")
    folder = common_folder(data_path, image_folder)
    draft.put(f"{place}.source", claim.source())
    _say_what_lies_there(draft, place, claim, flags, folder)
    draft.put(f"{place}.format", "llava")
    draft.put(f"{place}.file", folder.file)
    if folder.images:
        draft.put(f"{place}.images", folder.images)
    if image_folder is None:
        draft.warn(f"{place}.file", "no --image_folder: pictures are looked for beside this file")
    for variable in (name for path in (data_path, image_folder or "") for name in unresolved(path)):
        draft.warn(
            f"{place}.file",
            f"REPLACE {tidy('$' + variable)}: the text gives ${variable} no value (--set {variable}=VALUE)",
        )
    _aspect_ratio(draft, place, flags, literal=literal)
    if place == "dataset":
        draft.put("dataset.validation.fraction", 0.05)
        draft.say(
            "dataset.validation",
            "held out and scored before and after, while LLaVA's code trains on everything; of a large dataset less "
            "will do (a twentieth of LLaVA's 665K is 33 thousand answers of each model)",
        )


def _say_what_lies_there(draft: Draft, place: str, claim: Claim, flags: Flags, folder: DataFolder) -> None:
    images = f" and {folder.images or 'the pictures themselves'}" if flags.has("image_folder") else ""
    on_machine = " and ".join(filter(None, (flags.text("data_path"), flags.text("image_folder"))))
    what = f"{folder.file}{images} in it: {on_machine} of the machine that the command was written for"
    if claim.is_placeholder:
        draft.warn(
            f"{place}.source",
            f"REPLACE {claim.name} by a claim that has {what} (or translate again with --dataset-claim CLAIM)",
        )
    else:
        draft.say(f"{place}.source", f"has to have {what}")


def _aspect_ratio(draft: Draft, place: str, flags: Flags, *, literal: bool) -> None:
    ratio, where = flags.text("image_aspect_ratio"), f"{place}.imageAspectRatio"
    if not flags.has("image_aspect_ratio"):
        if flags.is_on("tune_mm_mlp_adapter"):
            draft.put(where, "square")
            draft.say(where, "no --image_aspect_ratio: the centre is cut out, as in LLaVA's own pretrain.sh")
        elif literal:
            draft.put(where, "square")
            draft.warn(where, "no --image_aspect_ratio: LLaVA cuts the centre out; v1.5's recipe is pad")
        else:
            draft.put(where, "pad")
            draft.warn(where, "no --image_aspect_ratio: LLaVA would cut the centre out; v1.5's recipe is pad, which "
                              "keeps the whole picture")  # fmt: skip
    elif ratio in {"pad", "square"}:
        draft.put(where, ratio)
    else:
        draft.put(where, "pad")
        draft.warn(where, f"{flags.written['image_aspect_ratio']}: not offered for v1.5; pad is its recipe")
