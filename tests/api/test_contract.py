"""Names, failures, run configuration and reports: what operator and trainer rely on."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llava_api import names
from llava_api.constants import STAGES, TERMINATION_MESSAGE_MAX_BYTES, TRAINING_STAGES, StageName
from llava_api.failures import BY_EXIT_CODE, BY_REASON, FAILURES, Reason, exit_code_of
from llava_api.report import MergeNumbers, PrepareNumbers, ProgressReport, StageFailure, StageResult
from llava_api.run_config import RunConfig, RunIdentity, WorkerLayout
from llava_api.spec import Spec

MINIMAL: dict[str, Any] = {
    "model": {"source": "pvc://models/llava"},
    "dataset": {"source": "pvc://data", "format": "llava", "file": "data.json"},
}


def make_config(**workers: Any) -> RunConfig:
    spec = Spec.model_validate(MINIMAL)
    return RunConfig(
        run=RunIdentity(namespace="ns", name="run", uid="u", stage=StageName.TRAIN, attempt=1),
        volume_root=Path("/llava/run"),
        model_dir=Path("/llava/inputs/models/llava"),
        dataset_dir=Path("/llava/inputs/data"),
        dataset=spec.dataset,
        training=spec.training,
        workers=WorkerLayout(**workers),
        merge=spec.merge,
        evaluation=spec.evaluation,
    )


def test_longest_allowed_name_keeps_every_child_a_dns_label() -> None:
    run = "a" * names.MAX_RUN_NAME
    made = [names.volume_claim_name(run), *(names.rendezvous_service_name(run, stage) for stage in TRAINING_STAGES)]
    made += [names.pod_hostname(run, stage, names.MAX_ATTEMPTS, names.MAX_REPLICAS - 1) for stage in STAGES]
    assert max(map(len, made)) == names.MAX_DNS_LABEL


def test_failure_table_is_complete_and_unambiguous() -> None:
    assert set(BY_REASON) == set(Reason)
    assert len(FAILURES) == len(Reason)
    codes = [failure.exit_code for failure in FAILURES if failure.exit_code is not None]
    assert len(set(codes)) == len(codes) == len(BY_EXIT_CODE)
    assert all(2 < code < 126 for code in codes), "codes of Python, argparse, shells and signals are taken"
    assert all(failure.hint.endswith(".") for failure in FAILURES)


def test_exit_code_of() -> None:
    assert BY_EXIT_CODE[exit_code_of(Reason.INVALID_DATA)].reason is Reason.INVALID_DATA
    with pytest.raises(ValueError, match="only the operator"):
        exit_code_of(Reason.POD_DISRUPTED)


def test_run_config_survives_the_wire() -> None:
    config = make_config(num_nodes=2, processes_per_node=4)
    text = config.model_dump_json()
    assert RunConfig.model_validate_json(text) == config
    assert json.loads(text)["training"]["batch"]["global"] == 128
    assert config.gradient_accumulation == 128 // (8 * 8)


def test_run_config_of_another_version_is_refused() -> None:
    content = json.loads(make_config().model_dump_json()) | {"version": 3}
    with pytest.raises(ValidationError, match="version"):
        RunConfig.model_validate(content)


def test_spec_refuses_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="learningrate"):
        Spec.model_validate(MINIMAL | {"training": {"learningrate": 1}})


def test_quantities_may_be_numbers() -> None:
    spec = Spec.model_validate(MINIMAL | {"prepare": {"resources": {"limits": {"cpu": 2, "memory": "1.5Gi"}}}})
    assert spec.prepare.resources.limits == {"cpu": "2", "memory": "1.5Gi"}


@pytest.mark.parametrize("text", ["1,5Gi", "-1", "Gi", "1 Gi", "1gb", "٣Gi"])
def test_malformed_quantities_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        Spec.model_validate(MINIMAL | {"storage": {"size": text}})


def make_failure(message: str, log_tail: str) -> StageResult:
    failure = StageFailure(reason=Reason.INVALID_DATA, message=message, log_tail=log_tail)
    return StageResult(stage=StageName.PREPARE, attempt=1, failure=failure)


def test_short_result_is_kept_whole() -> None:
    result = make_failure("bad", "line 1\nline 2")
    assert StageResult.model_validate_json(result.to_termination_message()) == result


@pytest.mark.parametrize("character", ["a", "\n", "→", "\x01"])
def test_long_result_loses_the_oldest_log_lines_first(character: str) -> None:
    message = make_failure("m" * 1000, character * 6000 + "newest line").to_termination_message()
    failure = StageResult.model_validate_json(message).failure
    assert len(message.encode()) <= TERMINATION_MESSAGE_MAX_BYTES
    assert failure is not None
    assert failure.message == "m" * 1000
    assert failure.log_tail.endswith("newest line")
    assert len(message.encode()) > TERMINATION_MESSAGE_MAX_BYTES * 0.5, "more was cut off than needed"


def test_long_message_is_cut_at_its_end() -> None:
    message = make_failure("first entry" + "ü" * 4000, "tail").to_termination_message()
    failure = StageResult.model_validate_json(message).failure
    assert failure is not None
    assert failure.message.startswith("first entry")
    assert len(message.encode()) <= TERMINATION_MESSAGE_MAX_BYTES


def test_result_without_anything_to_shorten_says_so() -> None:
    numbers = MergeNumbers(tensors_merged=1, max_logit_difference=0, max_rounding_difference=0.0, peak_memory_bytes=1)
    result = StageResult(stage=StageName.MERGE, attempt=1, merge=numbers, digests={"x" * 5000: "y"})
    with pytest.raises(ValueError, match="nothing to shorten"):
        result.to_termination_message()


def test_more_bytes_than_can_be_told_are_left_out() -> None:
    """EFS says that it has 8 EiB, which no status takes: a run on it would fail for that."""
    body = {"runUid": "u", "stage": "train", "attempt": 1, "step": 1, "totalSteps": 2}
    report = ProgressReport.model_validate({**body, "volumeFreeBytes": 2**63, "volumeSizeBytes": 2**53})
    assert (report.volume_free_bytes, report.volume_size_bytes) == (None, 2**53)
    with pytest.raises(ValidationError, match="volumeFreeBytes"):
        ProgressReport.model_validate({**body, "volumeFreeBytes": -1})
    fields = ("samples_train", "samples_validation", "pairs_train", "pairs_validation", "images", "supervised_tokens",
              "longest_sample_tokens", "overlong_samples")  # fmt: skip
    assert PrepareNumbers(**dict.fromkeys(fields, 1), free_bytes=2**63 - 1).free_bytes is None


def test_reports_of_a_newer_trainer_are_read() -> None:
    body = {"version": 1, "runUid": "u", "stage": "train", "attempt": 1, "step": 1, "totalSteps": 2, "novelty": 1}
    assert ProgressReport.model_validate(body).step == 1
