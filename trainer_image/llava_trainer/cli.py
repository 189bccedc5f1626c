"""Command line of the trainer image: one command a stage, ``llava-trainer STAGE --config FILE``.

A stage's module is imported when its command runs, inside the frame: preparing data does not pay for DeepSpeed, and
a library that cannot be imported is reported like every other failure.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_api.constants import CONFIG_PATH, ENV_DISABLE_XET, StageName
from llava_api.run_config import RunConfig
from llava_trainer.outcome import StageBody, StageOutput, run_stage
from llava_trainer.reporting import Reporter
from llava_trainer.translate.command import main as translate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns its exit code (``llava_api.failures``; of ``translate`` and ``chat``, their own)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["translate"]:
        return translate(given[1:])
    if given[:1] == ["chat"]:
        _quieten_libraries()
        from llava_trainer.chat.command import main as chat

        return chat(given[1:])
    parser = argparse.ArgumentParser(
        prog="llava-trainer",
        usage="llava-trainer STAGE [--config FILE]\n       llava-trainer translate FILE|- [options]\n"
        "       llava-trainer chat --model FOLDER [options] [QUESTION ...]",
        description="Run one stage of a LLaVA fine-tuning run, turn LLaVA's own commands into a manifest, or ask a "
        "model.",
    )
    parser.add_argument("stage", choices=[stage.value for stage in StageName], help="stage to run")
    parser.add_argument(
        "--config", type=Path, default=Path(CONFIG_PATH), metavar="FILE",
        help="run configuration, as the operator writes it (default: %(default)s)",
    )  # fmt: skip
    chosen = parser.parse_args(given)
    stage = StageName(chosen.stage)
    _quieten_libraries()
    return run_stage(stage, chosen.config, _BODIES[stage])


def _quieten_libraries() -> None:
    # Nothing is compiled by torch here, but bitsandbytes would load all of its compiler on import: 2.4 s a process.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # huggingface_hub reads these on import. Files come by our own client, and nobody is told who runs what.
    for name in (ENV_DISABLE_XET, "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")


def _prepare(config: RunConfig, reporter: Reporter) -> StageOutput:
    from llava_trainer.stages import prepare

    return prepare.run(config, reporter)


def _align(config: RunConfig, reporter: Reporter) -> StageOutput:
    from llava_trainer.stages import align

    return align.run(config, reporter)


def _train(config: RunConfig, reporter: Reporter) -> StageOutput:
    from llava_trainer.stages import train

    return train.run(config, reporter)


def _merge(config: RunConfig, reporter: Reporter) -> StageOutput:
    from llava_trainer.stages import merge

    return merge.run(config, reporter)


def _evaluate(config: RunConfig, reporter: Reporter) -> StageOutput:
    from llava_trainer.stages import evaluate

    return evaluate.run(config, reporter)


def _publish(config: RunConfig, reporter: Reporter) -> StageOutput:
    from llava_trainer.stages import publish

    return publish.run(config, reporter)


_BODIES: dict[StageName, StageBody] = {
    StageName.PREPARE: _prepare,
    StageName.ALIGN: _align,
    StageName.TRAIN: _train,
    StageName.MERGE: _merge,
    StageName.EVALUATE: _evaluate,
    StageName.PUBLISH: _publish,
}

if __name__ == "__main__":
    sys.exit(main())
