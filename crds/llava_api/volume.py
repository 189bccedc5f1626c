"""Where things lie on a run's volume. Paths only: nothing here touches a disk."""

from dataclasses import dataclass
from pathlib import Path

from llava_api.constants import StageName


@dataclass(frozen=True, kw_only=True)
class RunVolume:
    """The layout below ``root``, the folder where the run's claim is mounted.

    Every attempt of a stage writes its logs, its progress and (for training) its checkpoints into folders of
    its own; what a stage hands on (``train_file``, ``adapter_dir``, ``merged_dir``, ...) is written aside and
    renamed when it is whole.
    """

    root: Path

    @property
    def train_file(self) -> Path:
        """Checked training samples, one JSON object a line."""
        return self.root / "data" / "train.jsonl"

    @property
    def validation_file(self) -> Path:
        """Checked held-out samples, one JSON object a line."""
        return self.root / "data" / "validation.jsonl"

    @property
    def dataset_report_json(self) -> Path:
        """Counts, lengths and findings of prepare."""
        return self.root / "data" / "report.json"

    @property
    def dataset_report_html(self) -> Path:
        """The same for a person to look at."""
        return self.root / "data" / "report.html"

    @property
    def alignment_file(self) -> Path:
        """Checked samples of phase 1, one JSON object a line."""
        return self.root / "data" / "alignment.jsonl"

    @property
    def inputs_file(self) -> Path:
        """Where prepare found or put model and datasets (``llava_trainer.inputs``)."""
        return self.root / "inputs" / "inputs.json"

    @property
    def model_dir(self) -> Path:
        """The model in hub layout, where it had to be fetched, converted or put together."""
        return self.root / "inputs" / "model"

    def download_dir(self, role: str) -> Path:
        """What was fetched for ``role`` (model, vision-tower, dataset, ...), as it was."""
        return self.root / "inputs" / "downloads" / role

    @property
    def projector_dir(self) -> Path:
        """Projector that phase 1 made: config.json and projector.safetensors."""
        return self.root / "projector"

    def attempt_dir(self, stage: StageName, attempt: int) -> Path:
        """Folder that only this attempt writes to."""
        return self.root / "attempts" / f"{stage}-{attempt}"

    def log_dir(self, stage: StageName, attempt: int) -> Path:
        """Folder with one log a rank."""
        return self.attempt_dir(stage, attempt) / "logs"

    def checkpoints_dir(self, stage: StageName, attempt: int) -> Path:
        """Folder with the checkpoints of this attempt of align or train, ``step-NNNNNNNN`` each."""
        return self.attempt_dir(stage, attempt) / "checkpoints"

    def history_file(self, stage: StageName, attempt: int) -> Path:
        """Training curve of this attempt of align or train: one JSON object a logged step."""
        return self.attempt_dir(stage, attempt) / "history.jsonl"

    @property
    def adapter_dir(self) -> Path:
        """Final adapter in PEFT's layout, and the trained projector beside it."""
        return self.root / "adapter"

    @property
    def weights_dir(self) -> Path:
        """Trained weights of language model and projector, with method full: safetensors files under hub names."""
        return self.root / "weights"

    @property
    def merged_dir(self) -> Path:
        """Merged model in hub layout, ready for AutoModelForImageTextToText."""
        return self.root / "merged"

    @property
    def evaluation_dir(self) -> Path:
        """Folder of the three files below."""
        return self.root / "evaluation"

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
