"""Starting runs and watching them from outside, as a person with kubectl would."""

from dataclasses import dataclass
from typing import Any

import yaml

from llava_api.constants import LABEL_COMPLETION_INDEX, LABEL_RUN, LABEL_STAGE, Phase, StageName
from llava_api.status import StageState, Status
from tests.demo.plan import SAMPLE
from tests.kubectl import Kubectl, wait_for

SHUFFLED_PATH = "shuffled"
BAD_PATH = "bad"
LANGUAGE_MODEL_PATH = "language-model"
VISION_TOWER_PATH = "vision-tower"
CAPTIONS_PATH = "captions"
CHILD_KINDS = "jobs,pods,services,configmaps,persistentvolumeclaims"
_STAGE_TIMEOUT_S = 240
# Kills the training process (a child of the launcher) without giving it a chance to say anything.
_KILL_TRAINER = """
import os, pathlib, signal
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    if folder.name in ("1", str(os.getpid())):
        continue
    parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
    if parent == "1" and "python" in (folder / "comm").read_text() + (folder / "cmdline").read_text():
        os.kill(int(folder.name), signal.SIGKILL)
        print("killed", folder.name)
"""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of one namespace."""

    kubectl: Kubectl

    def start(
        self,
        name: str,
        *,
        data: str = "data",
        epochs: int | None = None,
        top: dict[str, Any] | None = None,
        **changes: dict[str, Any],
    ) -> None:
        """Apply the sample under another name, on other data, shorter or longer.

        Args:
            name: of the run.
            data: folder of the dataset in the inputs' claim.
            epochs: of training.
            top: fields of the spec itself.
            changes: fields to set, by the part of the spec that they are in (``evaluation={"prompts": []}``); None
                takes a field out.
        """
        manifest: dict[str, Any] = yaml.safe_load(SAMPLE.read_text())
        manifest["metadata"]["name"] = name
        manifest["spec"]["dataset"]["source"] = f"pvc://tiny-inputs/{data}"
        manifest["spec"] |= top or {}
        for part, fields in changes.items():
            merged = manifest["spec"].get(part, {}) | fields
            manifest["spec"][part] = {field: value for field, value in merged.items() if value is not None}
        if epochs is not None:
            manifest["spec"]["training"]["epochs"] = epochs
        self.kubectl.apply(manifest)

    def status(self, name: str) -> Status:
        """The run's status, as far as it has been written."""
        return Status.model_validate(self.kubectl.get("lft", name).get("status") or {})

    def wait_for_end(self, name: str, timeout_s: float = 400) -> Status:
        """The status of the run once it has ended, well or not."""

        def ended() -> Status | None:
            status = self.status(name)
            return status if status.phase in (Phase.SUCCEEDED, Phase.FAILED) else None

        return wait_for(f"run {name} to end", ended, timeout_s=timeout_s)

    def wait_for_stage(self, name: str, stage: StageName) -> None:
        """Wait until a pod of the stage runs."""

        def running() -> bool:
            failure = self.status(name).failure
            assert failure is None, failure
            return any(pod["status"].get("phase") == "Running" for pod in self.pods(name, stage))

        wait_for(f"a pod of {stage} of run {name} to run", running, timeout_s=_STAGE_TIMEOUT_S)

    def wait_for_step(self, name: str, step: int) -> Status:
        """Wait until training has reported ``step``."""

        def reached() -> Status | None:
            status = self.status(name)
            assert status.failure is None, status.failure
            progress = status.progress
            return status if progress and progress.stage is StageName.TRAIN and progress.step >= step else None

        return wait_for(f"run {name} to reach step {step}", reached, timeout_s=_STAGE_TIMEOUT_S)

    def pods(self, name: str, stage: StageName | None = None) -> list[dict[str, Any]]:
        """Pods of the run that exist, in whatever state."""
        selector = f"{LABEL_RUN}={name}" + (f",{LABEL_STAGE}={stage}" if stage else "")
        return self.kubectl.list("pods", "-l", selector)

    def kill_trainer(self, name: str, rank: int) -> None:
        """Kill the training process in the pod of a rank, in a run that has had one attempt."""
        [victim] = [
            pod["metadata"]["name"]
            for pod in self.pods(name, StageName.TRAIN)
            if pod["metadata"]["labels"][LABEL_COMPLETION_INDEX] == str(rank)
        ]
        assert "killed" in self.kubectl.run("exec", victim, "--", "python3", "-c", _KILL_TRAINER)

    def children(self, name: str) -> list[str]:
        """Kind and name of everything that the run owns."""
        found = self.kubectl.list(CHILD_KINDS)
        return sorted(
            f"{child['kind']}/{child['metadata']['name']}"
            for child in found
            if child["metadata"].get("labels", {}).get(LABEL_RUN) == name
            or any(
                owner["name"] == name and owner["kind"] == "LlavaFineTune"
                for owner in child["metadata"].get("ownerReferences", [])
            )
        )

    def delete(self, name: str) -> None:
        """Delete the run; returns once the object itself is gone, whatever its children do."""
        self.kubectl.run("delete", "lft", name, "--wait=true", timeout_s=30)

    def wait_until_gone(self, name: str, timeout_s: float) -> None:
        """Wait until nothing of the run is left."""

        def gone() -> bool:
            assert not self.kubectl.exists("lft", name), f"run {name} is still there"
            return not self.children(name)

        wait_for(f"the children of run {name} to go", gone, timeout_s=timeout_s)


def stage_states(status: Status) -> dict[StageName, StageState]:
    """State of every stage."""
    return {stage.name: stage.state for stage in status.stages}
