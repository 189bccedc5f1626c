"""The run configuration: all that a stage is told, in one versioned file written by the operator.

It is made from the resource's own types, so that a field has one definition. The trainer reads it once.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from llava_api.base import Strict
from llava_api.constants import RENDEZVOUS_PORT, StageName
from llava_api.spec import Alignment, Dataset, Download, Evaluation, Merge, Model, Training
from llava_api.volume import RunVolume

RUN_CONFIG_VERSION: Final = 1


class RunIdentity(Strict):
    """Which run, stage and attempt this is."""

    namespace: str
    name: str
    uid: str
    stage: StageName
    attempt: Annotated[int, Field(ge=1)]


class WorkerLayout(Strict):
    """How many processes train, and where they meet."""

    num_nodes: Annotated[int, Field(ge=1)] = 1
    """Pods of the training Job."""
    processes_per_node: Annotated[int, Field(ge=1)] = 1
    """One a GPU, or one a pod on a CPU."""
    device: Literal["cuda", "cpu"] = "cpu"
    rendezvous_host: str = "127.0.0.1"
    """DNS name of the first training pod."""
    rendezvous_port: int = RENDEZVOUS_PORT
    grace_period_seconds: int = 30
    stall_limit_seconds: Annotated[float, Field(gt=0)] = 300
    """How long a training process may stand still at most before it says where and ends: half of what the others'
    operations wait for it. Where its steps are quick it may only as long as the trainer's watchdog makes of them."""

    @property
    def world_size(self) -> int:
        """Number of training processes over all pods."""
        return self.num_nodes * self.processes_per_node


class Reporting(Strict):
    """Where rank 0 pushes progress. None of it is needed for training to succeed."""

    url: str
    ca_file: Path
    token_file: Path


class RunConfig(Strict):
    """Everything that a stage is told."""

    version: Literal[1] = RUN_CONFIG_VERSION
    run: RunIdentity
    volume_root: Path
    model_dir: Path
    """The model in hub layout. Where prepare has to fetch or convert it first, what ``inputs.json`` on the volume says
    takes its place in the stages after."""
    dataset_dir: Path
    """Folder of the dataset; the same holds."""
    alignment_dir: Path | None = None
    """Folder of phase 1's dataset; the same holds. None without alignment."""
    model: Model = Model()
    dataset: Dataset
    alignment: Alignment | None = None
    training: Training
    download: Download = Download()
    workers: WorkerLayout
    merge: Merge
    evaluation: Evaluation
    reporting: Reporting | None = None

    @property
    def volume(self) -> RunVolume:
        """Layout of the run's volume."""
        return RunVolume(root=self.volume_root)

    @property
    def gradient_accumulation(self) -> int:
        """Micro-batches a process runs for one optimiser step: global / (perDevice x processes)."""
        return self.training.batch.global_ // (self.training.batch.per_device * self.workers.world_size)
