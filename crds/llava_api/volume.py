"""Where things lie on a run's volume. Paths only: nothing here touches a disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llava_api.constants import StageName

_ATTEMPTS = "attempts"
_RUNS = "runs"
_SHARDS = "shards"
_TRY_NAME = re.compile(r"try-(0|[1-9]\d{0,9})")
_ATTEMPT_NAME = re.compile(rf"({'|'.join(StageName)})-([1-9]\d*)")


class MissingResultError(LookupError):
    """A path was asked for of a stage whose attempt that counts is not known; the argument is the stage."""


@dataclass(frozen=True, kw_only=True)
class RunVolume:
    """The layout below ``root``, the folder of the run on its claim.

    That is where the claim is mounted, and on one that was there before (``storage.existingClaim``) ``runs/UID`` in it,
    since other runs may have left something there.

    Every attempt of a stage writes into the folder ``attempts/STAGE-N`` and nowhere else: logs, progress, checkpoints,
    and what it hands on (``train_file``, ``adapter_dir``, ``merged_dir``, ...), which is written aside and renamed when
    it is whole. ``results`` tells which attempt's results count.
    """

    root: Path
    results: Mapping[StageName, int] | None = None
    """Number of the attempt that counts, by stage. None: the layout of images whose run configuration has version 1,
    where results lie at the root."""

    def result_dir(self, stage: StageName) -> Path:
        """Folder in which the result of a stage lies.

        Raises:
            MissingResultError: it is not known which attempt made it.
        """
        if self.results is None:
            return self.root
        if stage not in self.results:
            raise MissingResultError(stage)
        return self.attempt_dir(stage, self.results[stage])

    @property
    def train_file(self) -> Path:
        """Checked training samples, one JSON object a line."""
        return self.data_dir / "train.jsonl"

    @property
    def validation_file(self) -> Path:
        """Checked held-out samples, one JSON object a line."""
        return self.data_dir / "validation.jsonl"

    @property
    def selection_file(self) -> Path:
        """Held-out samples by which a step is selected, where one is; none of them is in ``validation_file``."""
        return self.data_dir / "selection.jsonl"

    @property
    def data_dir(self) -> Path:
        """Folder of the samples, and of the dataset report."""
        return self.result_dir(StageName.PREPARE) / "data"

    @property
    def embedded_images_dir(self) -> Path:
        """Images that the dataset's own files hold, each named by its digest."""
        return self.data_dir / "images"

    @property
    def dataset_report_json(self) -> Path:
        """Counts, lengths and findings of prepare."""
        return self.data_dir / "report.json"

    @property
    def dataset_report_html(self) -> Path:
        """The same for a person to look at."""
        return self.data_dir / "report.html"

    @property
    def refused_entries_file(self) -> Path:
        """Every entry of the datasets that cannot be used, and why, one JSON object a line."""
        return self.data_dir / "refused.jsonl"

    @property
    def alignment_file(self) -> Path:
        """Checked samples of phase 1, one JSON object a line."""
        return self.data_dir / "alignment.jsonl"

    def mixture_file(self, index: int) -> Path:
        """Checked samples of one dataset of the mixture, by its place there, one JSON object a line."""
        return self.data_dir / f"mixture-{index}.jsonl"

    @property
    def retention_file(self) -> Path:
        """Checked samples of the retention set, one JSON object a line."""
        return self.data_dir / "retention.jsonl"

    @property
    def inputs_file(self) -> Path:
        """Where prepare found or put model and datasets (``llava_trainer.inputs``)."""
        return self.inputs_dir / "inputs.json"

    @property
    def inputs_dir(self) -> Path:
        """Folder of what prepare has fetched and converted."""
        return self.result_dir(StageName.PREPARE) / "inputs"

    @property
    def model_dir(self) -> Path:
        """The model in hub layout, where it had to be fetched, converted or put together."""
        return self.inputs_dir / "model"

    @property
    def given_adapter_dir(self) -> Path:
        """The adapter that the run goes on from (``model.adapter``), checked, in the layout of ``adapter_dir``."""
        return self.inputs_dir / "adapter"

    def download_dir(self, role: str) -> Path:
        """What was fetched for ``role`` (model, vision-tower, dataset, ...), as it was."""
        return self.inputs_dir / "downloads" / role

    @property
    def projector_dir(self) -> Path:
        """Projector that phase 1 made: config.json and projector.safetensors."""
        return self.result_dir(StageName.ALIGN) / "projector"

    @property
    def attempts_dir(self) -> Path:
        """Folder of all attempts' folders."""
        return self.root / _ATTEMPTS

    def attempt_dir(self, stage: StageName, attempt: int) -> Path:
        """Folder that only this attempt writes to."""
        return self.attempts_dir / f"{stage}-{attempt}"

    def shard_dir(self, stage: StageName, attempt: int, index: int) -> Path:
        """Folder of one completion index of an attempt whose pods work for themselves; ``try-N`` in it of each pod."""
        return self.attempt_dir(stage, attempt) / _SHARDS / str(index)

    def log_dir(self, stage: StageName, attempt: int) -> Path:
        """Folder with one log a rank."""
        return self.attempt_dir(stage, attempt) / "logs"

    def checkpoints_dir(self, stage: StageName, attempt: int) -> Path:
        """Folder with the checkpoints of this attempt of align or train, ``step-NNNNNNNN`` each."""
        return self.attempt_dir(stage, attempt) / "checkpoints"

    def history_file(self, stage: StageName, attempt: int) -> Path:
        """Training curve of this attempt of align or train: one JSON object a logged step."""
        return self.attempt_dir(stage, attempt) / "history.jsonl"

    def tensorboard_dir(self, stage: StageName, attempt: int) -> Path:
        """TensorBoard's event files of this attempt of align or train."""
        name = "tensorboard" if stage is StageName.TRAIN else f"tensorboard-{stage}"
        return self.attempt_dir(stage, attempt) / name

    def wandb_dir(self, stage: StageName, attempt: int) -> Path:
        """What Weights & Biases' client keeps of this attempt of align or train."""
        name = "wandb" if stage is StageName.TRAIN else f"wandb-{stage}"
        return self.attempt_dir(stage, attempt) / name

    def hardest_file(self, stage: StageName, attempt: int) -> Path:
        """Training samples with the highest loss in this attempt of train, by their numbers in ``train_file``."""
        return self.attempt_dir(stage, attempt) / "hardest.json"

    @property
    def adapter_dir(self) -> Path:
        """Final adapter in PEFT's layout, and in it the projector where it was trained."""
        return self.result_dir(StageName.TRAIN) / "adapter"

    @property
    def weights_dir(self) -> Path:
        """What was trained whole, with method full: safetensors files under hub names."""
        return self.result_dir(StageName.TRAIN) / "weights"

    @property
    def merged_dir(self) -> Path:
        """Merged model in hub layout, ready for AutoModelForImageTextToText."""
        return self.result_dir(StageName.MERGE) / "merged"

    @property
    def evaluation_dir(self) -> Path:
        """Folder of the three files below."""
        return self.result_dir(StageName.EVALUATE) / "evaluation"

    @property
    def metrics_file(self) -> Path:
        """Scores of base and tuned model."""
        return self.evaluation_dir / "metrics.json"

    @property
    def answers_file(self) -> Path:
        """Each held-out question with the expected answer and both models' answers, one JSON object a line."""
        return self.evaluation_dir / "answers.jsonl"

    @property
    def report_file(self) -> Path:
        """The report for a person: one self-contained HTML file."""
        return self.evaluation_dir / "report.html"

    @property
    def publication_dir(self) -> Path:
        """What is published beside the model's own files: card, provenance, signature, and the list of all of them."""
        return self.result_dir(StageName.PUBLISH) / "publication"


def run_folder(uid: str) -> str:
    """Folder of a run, by its UID, on a claim that was there before."""
    return f"{_RUNS}/{uid}"


def claim_root(run_root: Path) -> Path | None:
    """Where the claim is mounted in which ``run_root`` is the folder of a run; None if that is the claim's root."""
    return run_root.parent.parent if run_root.parent.name == _RUNS else None


def runs_dir(claim: Path) -> Path:
    """Folder of the folders of runs on a claim that was there before."""
    return claim / _RUNS


STABLE_NAMES: Mapping[StageName, tuple[str, ...]] = {
    StageName.PREPARE: ("data",),
    StageName.ALIGN: ("projector", "tensorboard-align", "wandb-align"),
    StageName.TRAIN: ("adapter", "weights", "tensorboard", "wandb"),
    StageName.MERGE: ("merged",),
    StageName.EVALUATE: ("evaluation",),
    StageName.PUBLISH: ("publication",),
}
"""What people find at the volume's root of each stage: links to the folders of the same names in its attempt's folder.
No stage reads through them."""


def parse_attempt(name: str) -> tuple[StageName, int] | None:
    """Stage and number that the name of an attempt's folder tells; None for any other name."""
    match = _ATTEMPT_NAME.fullmatch(name)
    return (StageName(match[1]), int(match[2])) if match else None


def parse_try(name: str) -> int | None:
    """Number that the name of a pod's folder tells; None for any other name."""
    match = _TRY_NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_try_dir(path: Path) -> bool:
    """Whether ``path`` is the folder of a pod of one index, which its claim makes and nobody else."""
    return parse_try(path.name) is not None and path.parent.parent.name == _SHARDS


def find_attempt_dir(path: Path) -> Path | None:
    """The attempt's folder ``attempts/STAGE-N`` that ``path`` is, or lies in; None outside of one."""
    for folder in reversed((path, *path.parents)):
        if folder.parent.name == _ATTEMPTS and parse_attempt(folder.name):
            return folder
    return None
