"""The frame of every stage: exit codes, termination message, logs; and that nothing gets past it."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import ENV_COMPLETION_INDEX, TERMINATION_MESSAGE_MAX_BYTES, StageName
from llava_api.failures import BY_REASON, Reason
from llava_api.report import (
    EvaluateNumbers,
    MergeNumbers,
    PrepareNumbers,
    ProgressReport,
    StageResult,
    TrainNumbers,
)
from llava_api.run_config import RunConfig
from llava_trainer import cli, outcome
from llava_trainer.errors import StageError
from llava_trainer.logs import ProcessLog, read_tail
from llava_trainer.outcome import ENV_TERMINATION_LOG, Interrupted, StageOutput, run_stage
from llava_trainer.reporting import Reporter
from tests.trainer.attempts import FIRST_ATTEMPTS
from tests.trainer.exports import prepare_config

NUMBERS = PrepareNumbers(
    samples_train=1,
    samples_validation=1,
    pairs_train=1,
    pairs_validation=1,
    images=1,
    supervised_tokens=1,
    longest_sample_tokens=1,
    overlong_samples=0,
)
Run = Callable[..., tuple[int, StageResult]]


@pytest.fixture
def result_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(tmp_path / "result.json"))
    return tmp_path / "result.json"


@pytest.fixture
def run(tmp_path: Path, result_file: Path) -> Run:
    """Runs a body as the prepare stage; returns exit code and result."""

    def run(body: Callable[[RunConfig, Reporter], StageOutput], **changes: Any) -> tuple[int, StageResult]:
        config = prepare_config(tmp_path, tmp_path / "model", **changes)
        (tmp_path / "run.json").write_text(config.model_dump_json())
        code = run_stage(config.run.stage, tmp_path / "run.json", body)
        return code, StageResult.model_validate_json(result_file.read_text())

    return run


def raising(error: BaseException) -> Callable[[RunConfig, Reporter], StageOutput]:
    def body(config: RunConfig, reporter: Reporter) -> StageOutput:
        raise error

    return body


def log_of(tmp_path: Path) -> str:
    return (tmp_path / "volume" / "attempts" / "prepare-1" / "logs" / "rank-0.log").read_text()


def test_a_stage_that_succeeds_leaves_its_numbers(run: Run):
    code, result = run(lambda config, reporter: StageOutput(numbers=NUMBERS, digests={"train": "sha256:0"}))
    assert code == 0
    assert result == StageResult(stage=StageName.PREPARE, attempt=1, prepare=NUMBERS, digests={"train": "sha256:0"})


@pytest.mark.parametrize(("stage", "numbers"), [
    (StageName.TRAIN, TrainNumbers(steps=1, final_loss=0.5, trainable_parameters=1, tokens=1, world_size=1)),
    (StageName.MERGE, MergeNumbers(tensors_merged=1, max_logit_difference=0.0, max_rounding_difference=0.0,
                           peak_memory_bytes=1)),
    (StageName.EVALUATE, EvaluateNumbers(scores=(), prompts=0)),
])  # fmt: skip
def test_numbers_stand_under_their_stage(stage: StageName, numbers: Any, run: Run):
    code, result = run(
        lambda config, reporter: StageOutput(numbers=numbers),
        run={"stage": stage, "attempt": 3},
        results=FIRST_ATTEMPTS,
    )
    assert code == 0
    assert getattr(result, stage.value) == numbers
    assert (result.stage, result.attempt) == (stage, 3)


@pytest.mark.parametrize("index", ["0", "2"])
def test_any_pod_of_an_evaluation_may_tell_what_came_out(
    index: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    """Whoever has no numbers ends well and records nothing; whoever has them records them for all."""
    monkeypatch.setenv(ENV_COMPLETION_INDEX, index)
    changes = {"run": {"stage": StageName.EVALUATE, "attempt": 1}, "results": FIRST_ATTEMPTS}
    record = tmp_path / "volume" / "attempts" / "evaluate-1" / "result.json"
    code, result = run(lambda config, reporter: StageOutput(numbers=None), **changes)
    assert (code, result) == (0, StageResult(stage=StageName.EVALUATE, attempt=1))
    assert not record.exists()
    numbers = EvaluateNumbers(scores=(), prompts=0)
    code, result = run(lambda config, reporter: StageOutput(numbers=numbers), **changes)
    assert (code, result.evaluate) == (0, numbers)
    assert record.exists()


@pytest.mark.parametrize("reason", [reason for reason in Reason if BY_REASON[reason].exit_code is not None])
def test_a_known_reason_gives_its_exit_code(reason: Reason, run: Run, tmp_path: Path):
    code, result = run(raising(StageError(reason, "export.json[3]: is bad", rank=2, log_tail="last words")))
    assert code == BY_REASON[reason].exit_code
    assert result.failure.reason is reason
    assert result.failure.message == "export.json[3]: is bad"
    assert (result.failure.rank, result.failure.log_tail) == (2, "last words")
    # An attempt that does not count any more does not write why into what is another's by now.
    logged = f"prepare failed: {reason}: export.json[3]: is bad" in log_of(tmp_path)
    assert logged is (reason is not Reason.SUPERSEDED)


@pytest.mark.parametrize("error", [ValueError("what"), MemoryError(), RecursionError("deep"), AssertionError("ours")])
def test_anything_else_is_an_internal_error_with_the_log_s_end(error: Exception, run: Run, tmp_path: Path):
    code, result = run(raising(error))
    assert code == 70
    assert result.failure.reason is Reason.INTERNAL_ERROR
    assert result.failure.message == f"{type(error).__name__}: {error}"
    assert "Traceback" in result.failure.log_tail
    assert result.failure.log_tail.splitlines()[-1].startswith(type(error).__name__)
    assert "Traceback" in log_of(tmp_path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_volume_that_cannot_be_written_is_told_apart(number: int, run: Run):
    code, result = run(raising(OSError(number, os.strerror(number), "/llava/run/x")))
    assert code == 84
    assert result.failure.reason is Reason.STORAGE_UNWRITABLE
    assert "/llava/run/x" in result.failure.message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_apart(number: int, run: Run):
    code, result = run(raising(OSError(number, os.strerror(number), "/llava/run/x")))
    assert code == 74
    assert result.failure.reason is Reason.STORAGE_FULL
    assert "/llava/run/x" in result.failure.message


def test_a_full_disk_is_seen_behind_a_library_s_error(run: Run):
    def body(config: RunConfig, reporter: Reporter) -> StageOutput:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save") from error

    assert run(body)[0] == 74


def test_other_operating_system_errors_are_internal(run: Run):
    assert run(raising(PermissionError(errno.EACCES, "Permission denied")))[0] == 70


def test_a_full_disk_really(tmp_path: Path, result_file: Path, monkeypatch: pytest.MonkeyPatch):
    def body(config: RunConfig, reporter: Reporter) -> StageOutput:
        with Path("/dev/full").open("w") as stream:
            stream.write("x")
        raise AssertionError("/dev/full took it")

    (tmp_path / "run.json").write_text(prepare_config(tmp_path, tmp_path).model_dump_json())
    assert run_stage(StageName.PREPARE, tmp_path / "run.json", body) == 74


def test_sigterm_interrupts_and_the_previous_handler_comes_back(run: Run):
    before = signal.getsignal(signal.SIGTERM)

    def body(config: RunConfig, reporter: Reporter) -> StageOutput:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:  # a library that swallows every Exception
            raise AssertionError from error
        raise AssertionError("nothing happened")

    code, result = run(body)
    assert code == 75
    assert result.failure.reason is Reason.INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) is before
    assert not issubclass(Interrupted, Exception)


def test_a_stage_may_handle_sigterm_itself(run: Run):
    saved = []

    def body(config: RunConfig, reporter: Reporter) -> StageOutput:
        signal.signal(signal.SIGTERM, lambda number, frame: saved.append(number))
        signal.raise_signal(signal.SIGTERM)
        return StageOutput(numbers=NUMBERS)

    assert run(body)[0] == 0
    assert saved == [signal.SIGTERM]


BAD_CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no JSON": (lambda fields: "{", "the whole file: Invalid JSON"),
    "a list": (lambda fields: [], "the whole file: "),
    "another version": (lambda fields: fields | {"version": 3}, "version: Input should be 1 or 2 (is 3)"),
    "an unknown field": (lambda fields: fields | {"colour": "red"}, "colour: Extra inputs are not permitted (is"),
    "a value out of bounds": (
        lambda fields: fields | {"training": {"maxLength": 1}},
        "training.maxLength: Input should be greater than or equal to 64 (is 1)"),
    "a missing field": (lambda fields: fields | {"run": {}}, "run.namespace: Field required"),
    "another stage": (
        lambda fields: fields | {"run": fields["run"] | {"stage": "merge"}},
        "run.stage is merge, but the command was to run prepare"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_wrong_configuration_names_the_field(name: str, tmp_path: Path, result_file: Path):
    change, message = BAD_CONFIGS[name]
    changed = change(json.loads(prepare_config(tmp_path, tmp_path).model_dump_json()))
    (tmp_path / "run.json").write_text(changed if isinstance(changed, str) else json.dumps(changed))
    assert run_stage(StageName.PREPARE, tmp_path / "run.json", raising(AssertionError())) == 64
    failure = StageResult.model_validate_json(result_file.read_text()).failure
    assert failure.reason is Reason.INVALID_CONFIG
    assert f"run.json: {message}" in failure.message


def test_a_missing_configuration_is_told(tmp_path: Path, result_file: Path):
    assert run_stage(StageName.PREPARE, tmp_path / "no.json", raising(AssertionError())) == 64
    failure = StageResult.model_validate_json(result_file.read_text()).failure
    assert failure.message == f"{tmp_path}/no.json cannot be read: No such file or directory"


def test_the_message_fits_the_kubelet_s_limit(run: Run, result_file: Path):
    code, result = run(raising(StageError(Reason.INVALID_DATA, 'ü\n"' * 9000, log_tail="x" * 9000)))
    assert code == 65
    assert len(result_file.read_bytes()) <= TERMINATION_MESSAGE_MAX_BYTES
    assert result.failure.message.startswith('ü\n"')


def test_a_shorter_result_replaces_a_longer_one(run: Run, result_file: Path):
    result_file.write_text("x" * 5000)
    code, result = run(lambda config, reporter: StageOutput(numbers=NUMBERS))
    assert (code, result.failure) == (0, None)


@pytest.mark.parametrize("there", [True, False])
def test_in_a_container_the_kubelet_s_file_is_written_and_none_is_made(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kubelets = tmp_path / "termination-log"
    monkeypatch.setattr(outcome, "TERMINATION_LOG_PATH", str(kubelets))
    monkeypatch.delenv(ENV_TERMINATION_LOG, raising=False)
    if there:
        kubelets.write_text("x" * 5000)
    (tmp_path / "run.json").write_text(prepare_config(tmp_path, tmp_path).model_dump_json())
    assert run_stage(StageName.PREPARE, tmp_path / "run.json", raising(ValueError("no"))) == 70
    assert kubelets.exists() is there
    if there:
        assert StageResult.model_validate_json(kubelets.read_text()).failure.message == "ValueError: no"


def test_a_result_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(tmp_path / "no" / "such" / "folder"))
    (tmp_path / "run.json").write_text(prepare_config(tmp_path, tmp_path).model_dump_json())
    body = lambda config, reporter: StageOutput(numbers=NUMBERS)  # noqa: E731
    assert run_stage(StageName.PREPARE, tmp_path / "run.json", body) == 0
    assert "the result could not be written" in log_of(tmp_path)


def test_a_volume_that_cannot_be_written_is_told(tmp_path: Path, result_file: Path):
    config = prepare_config(tmp_path, tmp_path).model_copy(update={"volume_root": tmp_path / "file"})
    (tmp_path / "run.json").write_text(config.model_dump_json())
    (tmp_path / "file").write_text("a file where the volume should be")
    assert run_stage(StageName.PREPARE, tmp_path / "run.json", raising(AssertionError("must not run"))) == 70
    failure = StageResult.model_validate_json(result_file.read_text()).failure
    assert "NotADirectoryError" in failure.message


def test_the_log_goes_to_stdout_and_to_the_volume_and_outlives_the_process(tmp_path: Path):
    (tmp_path / "run.json").write_text(prepare_config(tmp_path, tmp_path).model_dump_json())
    program = (
        "import logging, os, pathlib, signal, warnings\n"
        "from llava_trainer.outcome import run_stage\n"
        "def body(config, reporter):\n"
        "    logging.getLogger('deep.inside').info('step %d', 7)\n"
        "    warnings.warn('look out', stacklevel=1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"run_stage('prepare', pathlib.Path({str(tmp_path / 'run.json')!r}), body)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    kept = log_of(tmp_path)
    assert kept == done.stdout
    assert "Z INFO deep.inside: step 7\n" in kept
    assert "WARNING py.warnings: " in kept
    assert "look out" in kept


def test_logging_is_left_as_it_was(run: Run):
    root = logging.getLogger()
    logging.captureWarnings(False)
    before = (list(root.handlers), root.level, warnings.showwarning)
    run(raising(ValueError()))
    assert (list(root.handlers), root.level, warnings.showwarning) == before


def test_what_was_logged_before_the_file_was_known_stands_in_it(tmp_path: Path):
    with ProcessLog() as log:
        logging.getLogger("early").info("first")
        log.keep_in(tmp_path / "logs" / "rank-0.log")
        logging.getLogger("late").warning("second")
        assert len(log.tail().splitlines()) == 2
    text = (tmp_path / "logs" / "rank-0.log").read_text()
    assert [line.split(" ", 2)[2] for line in text.splitlines()] == ["early: first", "late: second"]


def test_the_tail_of_a_log_is_whole_lines(tmp_path: Path):
    file = tmp_path / "rank-1.log"
    assert read_tail(file) == ""
    file.write_text("".join(f"line {index} ü\n" for index in range(100)))
    assert read_tail(file) == file.read_text()
    tail = read_tail(file, max_bytes=50)
    assert tail.splitlines()[-1] == "line 99 ü"
    assert all(line.startswith("line ") for line in tail.splitlines())
    assert 0 < len(tail.encode()) <= 50


@pytest.mark.parametrize("stage", StageName)
def test_the_command_line_has_every_stage(stage: StageName, tmp_path: Path, result_file: Path):
    assert cli.main([stage.value, "--config", str(tmp_path / "no.json")]) == 64
    assert StageResult.model_validate_json(result_file.read_text()).stage is stage


def test_the_command_line_refuses_other_words(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["deploy"])
    assert "invalid choice: 'deploy'" in capsys.readouterr().err


def test_the_command_line_loads_no_training_library():
    program = "import sys, llava_trainer.cli; print({'torch', 'transformers', 'deepspeed', 'PIL'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


NASTY = "photo\x1b[2J\u202egpj.\x07\n2026-01-01T00:00:00Z ERROR root: forged " + b"\xff.jpg".decode(
    "utf-8", "surrogateescape"
)
FIT = r"photo\x1b[2J\u202egpj.\x07"


@pytest.mark.parametrize(
    "error", [StageError(Reason.INVALID_DATA, NASTY), OSError(errno.ENOENT, "no", NASTY), ValueError(NASTY)]
)
def test_names_of_files_are_fit_to_show_everywhere(
    error: Exception,
    run: Run,
    tmp_path: Path,
    result_file: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """A name that is no UTF-8 ended the stage without its termination message."""

    # pytest's own handlers would hand the raw lines to the process that prints them, which cannot encode them.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def body(config: RunConfig, reporter: Reporter) -> StageOutput:
        logging.getLogger("any").warning("found %s", NASTY)
        raise error

    code, result = run(body)
    assert code != 0
    assert FIT in result.failure.message
    # An OSError shows the name as Python writes it.
    assert r"forged \xff.jpg" in result.failure.message.replace(r"\udcff", r"\xff")
    printed = capfd.readouterr()
    for text in (log_of(tmp_path), printed.out, printed.err, json.loads(result_file.read_text())["failure"]["message"]):
        assert not set(text) & {"\x1b", "\x07", "\u202e", "\udcff"}
    assert printed.err == ""
    assert [line for line in log_of(tmp_path).splitlines() if line.startswith("2026-01-01T00:00:00Z ERROR root")] == []


def test_a_message_that_grows_by_escaping_still_fits(run: Run, result_file: Path):
    code, result = run(raising(StageError(Reason.INVALID_DATA, "\x1b\u202e" * 4000)))
    assert code == 65
    assert result.failure.message.startswith(r"\x1b\u202e\x1b")
    assert len(result_file.read_bytes()) <= TERMINATION_MESSAGE_MAX_BYTES


def test_what_a_pod_wrote_is_fit_to_show_on_the_other_side():
    """The operator reads termination messages and reports that a pod could have written by itself."""
    told = '{"stage": "prepare", "attempt": 1, "failure": {"reason": "InvalidData", "message": "a\\u001b\\u202e?", '
    found = StageResult.model_validate_json(told + '"log_tail": "https://h/x?sig=1\\u0007\\nb"}}')
    assert found.failure is not None
    assert found.failure.message == r"a\x1b\u202e?"
    assert found.failure.log_tail == "https://h/x?…\nb"
    report = ProgressReport(run_uid="u", stage="prepare", attempt=1, step=0, total_steps=0, message="\x1b" * 256)
    assert report.message.endswith(r"\x1b…")
    assert len(report.message) <= 256
