"""The whole text into a manifest. Pure: files that the text names are read by a function that is handed in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from llava_api.constants import API_VERSION, KIND
from llava_api.names import MAX_RUN_NAME
from llava_api.spec import Spec
from llava_trainer.translate import extras
from llava_trainer.translate.blocks import read_pasted
from llava_trainer.translate.data_part import write_dataset
from llava_trainer.translate.draft import Draft, Note
from llava_trainer.translate.errors import TranslateError
from llava_trainer.translate.eval_block import EvalArguments, find_eval_arguments
from llava_trainer.translate.flags import Flags, read_flags
from llava_trainer.translate.launches import Gpus, Launch, ReadFile, count_gpus, find_launches
from llava_trainer.translate.method_part import write_method
from llava_trainer.translate.model_part import write_model
from llava_trainer.translate.places import DATASET_CLAIM, MODEL_CLAIM, check_name, make_name, read_claim
from llava_trainer.translate.training_part import write_alignment, write_course
from llava_trainer.translate.yaml_text import write_yaml

_ORDER = ("model", "dataset", "alignment", "training", "workers", "merge", "evaluation", "storage")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the person says besides the text."""

    gpus: int | None = None
    """GPUs of each pod."""
    nodes: int | None = None
    """Pods."""
    name: str | None = None
    dataset_claim: str | None = None
    model_claim: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    """Values of variables that the text uses and does not assign."""
    literal: bool = False
    """Take the training command by its word where the text contradicts it."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A manifest."""

    manifest: Mapping[str, Any]
    notes: tuple[Note, ...]
    text: str
    """The manifest as YAML with the notes as comments."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to look at before applying, each with its place."""
        return tuple(f"{'.'.join(note.place) or 'the text'}: {note.text}" for note in self.notes if note.is_warning)


@dataclass(frozen=True, kw_only=True)
class _Text:
    """What the pasted text asks for."""

    alignment: tuple[Launch, Flags] | None
    training: tuple[Launch, Flags] | None
    merges: tuple[Launch, ...]
    questions: tuple[EvalArguments, ...]
    remarks: tuple[str, ...]

    @property
    def last(self) -> tuple[Launch, Flags]:
        """The training command that decides name, pods and shared settings."""
        found = self.training or self.alignment
        assert found is not None
        return found


def translate(text: str, options: Options, read_file: ReadFile) -> Translation:
    """Turn a pasted text into a manifest.

    Args:
        text: commands and Python as people copy them.
        options: what the person says besides.
        read_file: reads a hostfile or a DeepSpeed configuration that the text names; None where it cannot.

    Raises:
        OptionMissingError: the text lacks something that an option supplies; the message names the option.
        TranslateError: the text cannot be translated; the message says where and why.
    """
    read = _read(text, options)
    launch, flags = read.last
    gpus = count_gpus(launch, read_file, options.gpus, options.nodes)
    draft = Draft()
    for remark in read.remarks:
        draft.warn("", remark)
    _write_sources(draft, read, options)
    if read.alignment:
        _write_alignment(draft, read, gpus)
    if read.training:
        write_method(draft, flags, merges=bool(read.merges), literal=options.literal)
    else:
        draft.put("training.method", "none")
        draft.say("training.method", "the command aligns and nothing more; the settings below are those of alignment")
    write_course(draft, flags, gpus, read_file, literal=options.literal)
    _write_workers(draft, gpus)
    _write_rest(draft, read, gpus)
    return _finish(draft, launch, flags, options)


def _read(text: str, options: Options) -> _Text:
    pasted = read_pasted(text, options.variables)
    launches = find_launches(pasted.commands)
    commands = [(launch, read_flags(launch.arguments, launch.line)) for launch in launches if launch.kind == "train"]
    alignments = [command for command in commands if command[1].is_on("tune_mm_mlp_adapter")]
    trainings = [command for command in commands if not command[1].is_on("tune_mm_mlp_adapter")]
    if not commands:
        raise TranslateError(
            "no training command found: the text needs a line like deepspeed llava/train/train_mem.py --…, which may "
            "be continued by backslashes"
        )
    if len(alignments) > 1 or len(trainings) > 1:
        lines = " and ".join(str(launch.line) for launch, _ in commands)
        raise TranslateError(
            f"the text trains more than once (lines {lines}): one manifest holds at most one alignment "
            "(--tune_mm_mlp_adapter True) and one training; translate them one by one"
        )
    asked = [extras.read_eval_command(launch) for launch in launches if launch.kind == "evaluate"]
    return _Text(
        alignment=alignments[0] if alignments else None,
        training=trainings[0] if trainings else None,
        merges=tuple(launch for launch in launches if launch.kind == "merge"),
        questions=(*find_eval_arguments(pasted.statements), *asked),
        remarks=pasted.remarks,
    )


def _write_sources(draft: Draft, read: _Text, options: Options) -> None:
    models = read_claim("--model-claim", options.model_claim, MODEL_CLAIM)
    data = read_claim("--dataset-claim", options.dataset_claim, DATASET_CLAIM)
    both = read.alignment is not None and read.training is not None
    flags = read.last[1]
    write_model(draft, flags, models, aligned_by=read.alignment[1] if both and read.alignment else None)
    write_dataset(draft, "dataset", flags, data, literal=options.literal)
    if read.alignment and not read.training:
        draft.say("dataset", "what the evaluation stage asks the aligned model about")
    if read.alignment:
        write_dataset(draft, "alignment.dataset", read.alignment[1], data, literal=options.literal)


def _write_alignment(draft: Draft, read: _Text, gpus: Gpus) -> None:
    assert read.alignment is not None
    _, flags = read.alignment
    write_alignment(draft, flags, gpus)
    if read.training:
        extras.say_without_effect(draft, flags, "alignment", said=read.training[1])
        extras.say_unknown(draft, flags, "alignment")
        if gpus != _own_gpus(read.alignment[0], gpus):
            draft.warn("alignment.batch", "both phases train on the same pods: those of the second command")


def _own_gpus(launch: Launch, gpus: Gpus) -> Gpus:
    """GPUs that a command names by its own options, or ``gpus`` where it names none."""
    try:
        return count_gpus(launch, lambda _: None, None, None)
    except TranslateError:
        return gpus


def _write_workers(draft: Draft, gpus: Gpus) -> None:
    draft.put("workers.replicas", gpus.replicas)
    draft.put("workers.gpus", gpus.per_replica)
    draft.say("workers", f"pods and GPUs of each by {gpus.said_by}")
    if draft.get("training.zero.offload"):
        draft.say("workers", "offload keeps about 12 bytes a trained parameter in the pods' memory: see that their "
                             "resources, 64Gi each if left out, are enough")  # fmt: skip
    if gpus.replicas > 1:
        draft.say("storage", "more than one pod: the StorageClass must offer ReadWriteMany")


def _write_rest(draft: Draft, read: _Text, gpus: Gpus) -> None:
    launch, flags = read.last
    for merge in read.merges:
        extras.say_merge(draft, merge)
    extras.say_paths_of_others(draft, read.merges, flags)
    if read.questions:
        extras.write_evaluation(draft, read.questions, flags.text("image_folder"))
    if gpus.per_replica == 0:
        draft.put("evaluation.workers.gpus", 0)
    if draft.get("training.method") == "full":
        draft.put("storage.size", "1Ti")
        draft.say("storage.size", "a checkpoint of every weight is 12 bytes a parameter: 84 GB at 7B, 156 GB at 13B")
    extras.say_environment(draft, launch)
    extras.say_unknown(draft, flags, "training")
    extras.say_without_effect(draft, flags, "training")


def _finish(draft: Draft, launch: Launch, flags: Flags, options: Options) -> Translation:
    name = (
        make_name(flags.text("output_dir"), "llava", MAX_RUN_NAME)
        if options.name is None
        else check_name(options.name, MAX_RUN_NAME)
    )
    spec = {part: draft.values[part] for part in _ORDER if part in draft.values}
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    _check(spec)
    notes = tuple(
        Note(place=("spec", *note.place) if note.place else (), text=note.text, is_warning=note.is_warning)
        for note in draft.notes
    )
    heading = [f"Translated from {launch.launcher} {launch.script} (line {launch.line}) by llava-trainer translate."]
    if any("REPLACE" in note.text for note in notes):
        heading.append("Before you apply it, replace what is marked REPLACE.")
    return Translation(manifest=manifest, notes=notes, text=write_yaml(manifest, notes, heading))


def _check(spec: Mapping[str, Any]) -> None:
    """Hold the result against the types of the resource, so that what is refused is refused here.

    Raises:
        TranslateError: naming the fields.
    """
    try:
        Spec.model_validate(spec)
    except ValidationError as error:
        raise TranslateError(
            "the command asks for what a manifest cannot say: " + "; ".join(_problems(error.errors()))
        ) from error


def _problems(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"spec.{'.'.join(map(str, error['loc']))} is {error['input']!r}: {error['msg']}" for error in errors]
