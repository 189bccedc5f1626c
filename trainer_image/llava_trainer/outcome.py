"""The frame that every stage runs in: configuration in, one result and one exit code out.

A stage is a plain function ``run(config, reporter) -> StageOutput`` in ``llava_trainer.stages``. It raises
``StageError`` when it knows why it cannot go on; whatever else it raises is an internal error. The frame is the one
place that catches everything, because it is the one place that reports: it always leaves a ``StageResult`` as the
container's termination message and ends with the exit code of ``llava_api.failures``. It also brings the attempt into
its folder on the volume, and ends a stage at once that an earlier attempt had finished (``attempts``).

SIGTERM raises ``Interrupted`` in the main thread. A stage that has something to save (training) installs a handler
of its own.
"""

import errno
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from llava_api.constants import TERMINATION_LOG_PATH, TRAINING_STAGES, StageName
from llava_api.failures import Reason, exit_code_of
from llava_api.report import (
    EvaluateNumbers,
    MergeNumbers,
    PrepareNumbers,
    PublishNumbers,
    StageFailure,
    StageResult,
    TrainNumbers,
)
from llava_api.run_config import RunConfig
from llava_api.text import show
from llava_trainer.attempts.asked import find_other_request
from llava_trainer.attempts.finished import record_result, take_over_result
from llava_trainer.attempts.folder import Fence, claim_attempt, is_first_pod
from llava_trainer.attempts.links import link_results
from llava_trainer.attempts.pod import pod_index, pod_try
from llava_trainer.attempts.shards import is_sharded
from llava_trainer.attempts.takeover import remove_earlier, take_over
from llava_trainer.device_faults import explain_device_fault
from llava_trainer.errors import StageError
from llava_trainer.inputs import find_damaged_input, load_run_config
from llava_trainer.logs import ProcessLog
from llava_trainer.reporting import Reporter

__all__ = ["Interrupted", "StageBody", "StageError", "StageOutput", "run_stage"]

ENV_TERMINATION_LOG = "LLAVA_TERMINATION_LOG"
"""Where the result is written instead of TERMINATION_LOG_PATH, outside a container."""

_MAX_MESSAGE = 4096
_STORAGE_REASONS = {
    errno.ENOSPC: Reason.STORAGE_FULL, errno.EDQUOT: Reason.STORAGE_FULL, errno.EROFS: Reason.STORAGE_UNWRITABLE,
    errno.EIO: Reason.STORAGE_UNWRITABLE, errno.ESTALE: Reason.STORAGE_UNWRITABLE,
}  # fmt: skip
"""What is wrong with the volume, by the system's word: full, read-only, broken, gone."""

logger = logging.getLogger(__name__)


class Interrupted(BaseException):
    """The pod was asked to stop. No Exception, so that no library swallows it on the way up."""


@dataclass(frozen=True, kw_only=True)
class StageOutput:
    """What a stage that succeeded hands back."""

    numbers: PrepareNumbers | TrainNumbers | MergeNumbers | EvaluateNumbers | PublishNumbers | None
    """None: this pod has done its part, and another one of the attempt tells what came out."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """sha256 of what it made, by artifact name."""


StageBody = Callable[[RunConfig, Reporter], StageOutput]


def run_stage(stage: StageName, config_path: Path, body: StageBody) -> int:
    """Run a stage in its frame.

    Args:
        stage: the stage that ``body`` is; a configuration for another one is refused.
        config_path: the run configuration.
        body: the stage. The reporter it is given starts nothing until it is used.

    Returns:
        The exit code for the container: 0, or the failure's.
    """
    with ProcessLog() as log:
        result = _run(stage, config_path, body, log)
        _leave_result(result)
    return 0 if result.failure is None else exit_code_of(result.failure.reason)


def load_config(path: Path, stage: StageName) -> RunConfig:
    """Read and check the run configuration.

    Raises:
        StageError: InvalidConfig, naming the field, or the file that cannot be read.
    """
    try:
        return load_run_config(path, stage)
    except OSError as error:
        raise StageError(Reason.INVALID_CONFIG, f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise StageError(Reason.INVALID_CONFIG, _name_fields(path, error)) from error


def stage_log_file(config: RunConfig) -> Path:
    """Log of a pod's first process: rank 0, its index in evaluation, or in training the launcher, which has no rank."""
    name = "rank-0"
    if config.run.stage in TRAINING_STAGES:
        name = f"launcher-{pod_index()}"
    elif is_sharded(config.run.stage):
        name = f"rank-{pod_index()}" + (f"-{pod_try()}" if pod_try() else "")
    return config.volume.log_dir(config.run.stage, config.run.attempt) / f"{name}.log"


def explain(error: BaseException, log_tail: str) -> StageFailure:
    """Turn what a stage raised into a failure of the table.

    Args:
        error: what was raised.
        log_tail: this process's last log lines; kept for errors that nobody foresaw.
    """
    if isinstance(error, StageError):
        return StageFailure(
            reason=error.reason, message=_fit(error.message), rank=error.rank, log_tail=error.log_tail,
            step=error.step, attempt_steps=error.attempt_steps,
        )  # fmt: skip
    if isinstance(error, Interrupted):
        return StageFailure(reason=Reason.INTERRUPTED, message="the pod was asked to stop (SIGTERM)")
    trouble = _find_storage_trouble(error)
    if trouble is not None and trouble.errno is not None:
        return StageFailure(reason=_STORAGE_REASONS[trouble.errno], message=_fit(f"writing failed: {trouble}"))
    fault = explain_device_fault(error)
    if fault is not None:
        return StageFailure(reason=fault.reason, message=_fit(fault.message))
    message = _fit(f"{type(error).__name__}: {error}")
    return StageFailure(reason=Reason.INTERNAL_ERROR, message=message, log_tail=log_tail)


def _fit(message: str) -> str:
    return show(message, max_chars=_MAX_MESSAGE, multiline=True)


def _run(stage: StageName, config_path: Path, body: StageBody, log: ProcessLog) -> StageResult:
    attempt, fence = 0, None
    try:
        config = load_config(config_path, stage)
        attempt = config.run.attempt
        claim_attempt(config)
        log.keep_in(stage_log_file(config))
        logger.info("%s of %s/%s, attempt %d", stage, config.run.namespace, config.run.name, attempt)
        with _interrupted_by_sigterm(), Reporter(config) as reporter:
            fence = reporter.fence
            return _do_stage(config, body, reporter)
    except (Exception, Interrupted) as error:
        if fence is not None and isinstance(error, Exception) and (superseded := _find_superseded(error, fence)):
            log.leave_file()
            error = superseded
        elif fence is not None and stage is StageName.PREPARE and isinstance(error, StageError):
            # The dataset report is there for people whether prepare succeeded or not.
            link_results(config)
        failure = explain(error, "")
        if failure.reason is Reason.INTERNAL_ERROR and not isinstance(error, StageError):
            logger.exception("%s failed", stage)
            failure = explain(error, log.tail())
        else:
            logger.error("%s failed: %s: %s", stage, failure.reason, failure.message)
        return StageResult(stage=stage, attempt=attempt, failure=failure)


def _do_stage(config: RunConfig, body: StageBody, reporter: Reporter) -> StageResult:
    """Do the stage, or take over what an earlier attempt has finished; recorded on the volume at the end.

    The pods of an evaluation wait for none of them, so each takes over, and the one that has numbers records.
    """
    run = config.run
    if run.stage is not StageName.EVALUATE and not is_first_pod():
        return _to_result(config, body(config, reporter))
    take_over(config)
    result = take_over_result(config, lambda folder: _find_reason_against(config, folder))
    if result is None:
        output = body(config, reporter)
        result = _to_result(config, output)
        if output.numbers is None:
            return result
        reporter.fence.check()
        record_result(config, result)
    elif run.stage in TRAINING_STAGES and config.workers.num_nodes > 1:
        # The other pods wait to hear of it.
        body(config, reporter)
    reporter.fence.check()
    link_results(config)
    remove_earlier(config.volume.attempt_dir(run.stage, run.attempt))
    return result


def _find_reason_against(config: RunConfig, attempt_dir: Path) -> str | None:
    """Why the finished result of an earlier attempt does not count, beyond what its record has digests of."""
    if config.run.stage is StageName.PUBLISH:
        return find_other_request(config, attempt_dir)
    return find_damaged_input(attempt_dir)


def _to_result(config: RunConfig, output: StageOutput) -> StageResult:
    numbers: dict[str, Any] = {} if output.numbers is None else {config.run.stage.value: output.numbers}
    return StageResult(stage=config.run.stage, attempt=config.run.attempt, digests=dict(output.digests), **numbers)


def _find_superseded(error: Exception, fence: Fence) -> StageError | None:
    """What ``error`` is if the attempt does not count any more: whatever went wrong, that is the cause."""
    if isinstance(error, StageError) and error.reason is Reason.SUPERSEDED:
        return error
    try:
        fence.check()
    except StageError as superseded:
        return superseded
    except OSError:
        # The volume does not tell: the error is what it says.
        pass
    return None


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _leave_result(result: StageResult) -> None:
    """Write the termination message; a stage that did its work does not fail because this cannot be written."""
    chosen = os.environ.get(ENV_TERMINATION_LOG)
    path = Path(chosen or TERMINATION_LOG_PATH)
    try:
        # The kubelet has made the file: outside a container nothing is left behind in /dev.
        with path.open("w" if chosen else "r+", encoding="utf-8") as stream:
            stream.write(result.to_termination_message())
            stream.truncate()
    except OSError as error:
        logger.warning("the result could not be written to %s: %s", path, error.strerror)


def _find_storage_trouble(error: BaseException) -> OSError | None:
    """The disk's error behind ``error``, also where a library wrapped it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _STORAGE_REASONS:
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _name_fields(path: Path, error: ValidationError) -> str:
    details = (
        f"{'.'.join(map(str, detail['loc'])) or 'the whole file'}: {detail['msg']} (is {detail['input']!r:.80})"
        for detail in error.errors(include_url=False)
    )
    return f"{path}: " + "; ".join(details)
