"""A run finishes with the image that it began with, also when the operator is newer than that image.

The stages are those of an earlier version, as processes of its own code; what they are told, and what becomes of what
they say, is this version's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_api.constants import Phase, StageName
from llava_api.status import Status
from llava_operator.build.common import Platform
from llava_operator.build.config import CONFIG_KEY, build_config_map
from llava_operator.cache.views import PodView, Termination
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Start
from llava_operator.run import attempt_of, current_stage, stage_of
from tests.controller.makers import commit, make_job, make_pod, make_run, see
from tests.older import extract_older
from tests.tiny.export import make_export

PLATFORM = Platform(trainer_image="trainer:older", report_url="https://127.0.0.1:1/v1/progress")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainer and the types of the earlier version."""
    return extract_older(tmp_path_factory.mktemp("older"), "crds/llava_api", "trainer_image/llava_trainer")


def run_stage(older: Path, stage: StageName, config: str, folder: Path) -> PodView:
    """The pod of a stage whose process is the earlier version's; it must end well."""
    file, termination = folder / "run.json", folder / "termination-log"
    file.write_text(config)
    environment = {
        **os.environ, "LLAVA_TERMINATION_LOG": str(termination), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{older}/trainer_image:{older}/crds", "LLAVA_POD_NAME": f"older-{stage}",
    }  # fmt: skip
    command = [sys.executable, "-m", "llava_trainer.cli", str(stage), "--config", str(file)]
    done = subprocess.run(command, env=environment, cwd=older, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    ended = Termination(exit_code=0, reason="Completed", message=termination.read_text(), finished_at="")
    return make_pod(phase="Succeeded", started=True, ended=ended)


def test_a_run_ends_with_the_trainer_that_it_began_with(older: Path, tmp_path: Path, toy_model_dir: Path) -> None:
    make_export(tmp_path / "set", format="llava", images_per_scene=1)
    spec = {
        "dataset": {"source": "pvc://data/set", "format": "llava", "file": "export.json", "images": "images"},
        "workers": {"replicas": 1, "gpus": 0},
        "training": {"batch": {"perDevice": 4, "global": 8}, "lora": {"rank": 4, "alpha": 8}, "maxLength": 256},
        "evaluation": {"workers": {"gpus": 0}, "generation": {"maxNewTokens": 4}},
    }
    (tmp_path / "run").mkdir()
    status: Status = commit(see(spec=spec))
    while stage := current_stage(status):
        assert decide(see(status, spec=spec)) == Start(stage=stage.name, attempt=1)
        attempt = attempt_of(make_run(status, **spec), stage)
        text = build_config_map(attempt, PLATFORM)["data"][CONFIG_KEY]
        host = json.loads(text)["workers"]["rendezvousHost"]
        text = text.replace(host, "127.0.0.1")
        for inside, outside in (
            ("/llava/run", tmp_path / "run"), ("/llava/inputs/models/llava", toy_model_dir),
            ("/llava/inputs/data/set", tmp_path / "set"),
        ):  # fmt: skip
            text = text.replace(inside, str(outside))
        pod = run_stage(older, stage.name, text, tmp_path)
        status = commit(see(status, job=make_job(status, complete=True), pods=(pod,), spec=spec))
    assert status.phase is Phase.SUCCEEDED, status.failure
    assert status.trainer is not None
    assert (status.trainer.image, status.trainer.config_version) == (None, 1)
    assert stage_of(status, StageName.MERGE).state == "Succeeded"
    assert status.artifacts is not None
    # Where that version puts them, and nowhere else.
    for path in (status.artifacts.adapter, status.artifacts.merged, status.artifacts.report):
        assert path is not None
        assert (tmp_path / "run" / path).exists()
    assert not list((tmp_path / "run" / "attempts").glob("*/merged"))
