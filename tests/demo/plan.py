"""What the demo was asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "manifests" / "samples" / "tiny-cpu.yaml"
INPUTS_CLAIM = "tiny-inputs"
INPUTS_SIZE = "2Gi"
BASE_PATH = "base"
DATA_PATH = "data"
_MAX_TRAINING_SAMPLES = 100_000


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """A person's own dataset."""

    folder: Path
    format: str
    file: str
    images: str


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """One demo run."""

    cluster: str
    """Name of the embedded cluster."""
    context: str | None
    """kubectl context of a person's own cluster; None: the embedded one."""
    namespace: str
    run: str
    output: Path
    """Folder on this machine for the report and the numbers."""
    data: OwnData | None
    images: dict[str, str]
    """Image references by name (operator, trainer) on a person's own cluster."""
    storage_class: str | None


def build_manifest(plan: DemoPlan) -> dict[str, Any]:
    """The sample, changed only where the person's own data or cluster asks for it."""
    manifest: dict[str, Any] = yaml.safe_load(SAMPLE.read_text())
    manifest["metadata"]["name"] = plan.run
    spec = manifest["spec"]
    if plan.storage_class:
        spec["storage"]["storageClassName"] = plan.storage_class
    if plan.data:
        spec["dataset"] |= {"format": plan.data.format, "file": plan.data.file, "images": plan.data.images}
        # Long texts in byte tokens: the toy's tokenizer knows few words.
        spec["training"]["maxLength"] = 1024
        # Every pair is in the report: the held-out ones as the score, the others as what was seen in training.
        spec["evaluation"] |= {"prompts": [], "trainingSamples": _MAX_TRAINING_SAMPLES}
        spec["evaluation"]["generation"]["maxNewTokens"] = 96
        # A toy of a million parameters is not what that data is to be judged by.
        del spec["evaluation"]["gate"]
    return manifest
