"""A run that has been evaluated, as it stands when publishing begins, and what is written about it."""

import shutil
from pathlib import Path
from typing import Any

from llava_api.constants import StageName
from llava_api.report import StageResult, TrainNumbers
from llava_api.run_config import RunConfig
from llava_api.spec import Publish
from llava_trainer.attempts.finished import record_result
from llava_trainer.files import sha256_folder
from llava_trainer.inputs import Inputs
from llava_trainer.stages import evaluate, merge
from tests.trainer.attempts import begin
from tests.trainer.runs import Recorder, describe_run, make_run, run_config

TRAINED = TrainNumbers(
    steps=60,
    final_loss=0.05,
    trainable_parameters=1234,
    tokens=54_000,
    world_size=2,
    validation_loss=0.07,
    best_step=40,
)
ORIGINS = {
    "model": f"hf://llava-hf/llava-1.5-7b-hf@{'c0ffee42' * 5}",
    "dataset": "s3://trays/export",
}


def make_evaluated(root: Path) -> None:
    """A run that has ended well but for publishing, with the record of each of its stages."""
    make_run(root)
    # In fp32 the merged model says what base and adapter say.
    trained = describe_run(root, StageName.MERGE, merge={"dtype": "float32"})
    # Of PEFT's own saving, which training leaves out.
    (trained.volume.adapter_dir / "README.md").unlink()
    digests = {"adapter": sha256_folder(trained.volume.adapter_dir)}
    train = run_config(root, StageName.TRAIN)
    record_result(train, StageResult(stage=StageName.TRAIN, attempt=1, train=TRAINED, digests=digests))
    prepare = describe_run(root, StageName.PREPARE)
    inputs = Inputs(model_dir=root / "base", dataset_dir=root / "data", origins=ORIGINS)
    prepare.volume.inputs_dir.mkdir(parents=True)
    prepare.volume.inputs_file.write_text(inputs.model_dump_json())
    record_result(prepare, StageResult(stage=StageName.PREPARE, attempt=1))
    with Recorder(trained) as reporter:
        merged = merge.run(trained, reporter)
    record_result(
        trained, StageResult(stage=StageName.MERGE, attempt=1, merge=merged.numbers, digests=dict(merged.digests))
    )
    config = run_config(root, StageName.EVALUATE, evaluation={"gpus": 0, "generation": {"maxNewTokens": 8}})
    with Recorder(config) as reporter:
        evaluated = evaluate.run(config, reporter)
    record_result(
        config,
        StageResult(stage=StageName.EVALUATE, attempt=1, evaluate=evaluated.numbers, digests=dict(evaluated.digests)),
    )


def publish_config(root: Path, *, attempt: int = 1, image: str | None = None, **publish: Any) -> RunConfig:
    """Of the publish stage, whose attempt has begun."""
    spec = Publish.model_validate({"destinations": [{"address": "pvc://models/invoices"}], **publish})
    config = describe_run(root, StageName.PUBLISH, merge={"dtype": "float32"})
    run = config.run.model_copy(update={"attempt": attempt})
    config = config.model_copy(update={"run": run, "publish": spec, "image": image})
    # Earlier stages' beginning makes the folder of the first one, too.
    if not (config.volume.attempt_dir(StageName.PUBLISH, attempt) / "claims").exists():
        begin(config)
    return config


def copy_published(content: Any, folder: Path) -> Path:
    """What a destination has, as whoever downloads all of it has it."""
    for item in content.items:
        place = folder / item.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(item.path, place)
    return folder
