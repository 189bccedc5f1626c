"""Merge patches, durations, and what the summary makes of odd numbers."""

import pytest
from pydantic import ValidationError

from llava_api.constants import StageName
from llava_api.status import Progress, Status
from llava_operator.deciding.status import complete_status, dump_status, format_duration, merge_patch
from tests.controller.makers import NOW, NOW_TEXT, begun, walk


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {}, {"a": None}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, {"a": {"c": None}}),
        ({"a": [1, 2]}, {"a": [2]}, {"a": [2]}),
        ({"a": {"b": 1}}, {"a": [1]}, {"a": [1]}),
        ({}, {"a": {}}, {"a": {}}),
    ],
)
def test_merge_patch(before: dict[str, object], after: dict[str, object], patch: dict[str, object]) -> None:
    assert merge_patch(before, after) == patch


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (11100, "3h5m"), (172_799, "47h59m"),
        (172_800, "2d"), (187_200, "2d4h"),
    ],
)  # fmt: skip
def test_format_duration(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("step", "total", "shown", "percent"), [(5, 0, "5/?", ""), (9, 8, "9/8", "100"), (0, 8, "0/8", "0")]
)
def test_summary_of_odd_progress(step: int, total: int, shown: str, percent: str) -> None:
    progress = Progress(stage=StageName.TRAIN, attempt=1, pod_uid="u", step=step, total_steps=total,
                        last_update_time=NOW_TEXT)  # fmt: skip
    status = begun(StageName.TRAIN).model_copy(update={"progress": progress})
    summary = complete_status(status, before=status, generation=1, shown_metric="exact_match", now=NOW).summary
    assert summary is not None
    assert (summary.step, summary.percent, summary.eta) == (shown, percent, "")


@pytest.mark.parametrize(
    ("step", "total", "shown", "percent"),
    [(1_234_567_890, 13_500_000_000, "1.23/13.50 GB", "9"), (20_000_000, 0, "0.02/? GB", "")],
)
def test_bytes_are_shown_as_gigabytes(step: int, total: int, shown: str, percent: str) -> None:
    progress = Progress(stage=StageName.PREPARE, attempt=1, pod_uid="u", step=step, total_steps=total, unit="bytes",
                        last_update_time=NOW_TEXT)  # fmt: skip
    status = begun().model_copy(update={"progress": progress})
    summary = complete_status(status, before=begun(), generation=1, shown_metric="exact_match", now=NOW).summary
    assert summary is not None
    assert (summary.step, summary.percent) == (shown, percent)


def test_progress_of_an_earlier_stage_is_not_shown_for_this_one() -> None:
    progress = Progress(stage=StageName.PREPARE, attempt=1, pod_uid="u", step=8, total_steps=8,
                        last_update_time=NOW_TEXT)  # fmt: skip
    status = begun(StageName.TRAIN).model_copy(update={"progress": progress})
    summary = complete_status(status, before=status, generation=1, shown_metric="exact_match", now=NOW).summary
    assert summary is not None
    assert (summary.stage, summary.step) == ("train", "")


def test_dumped_status_has_the_api_names_and_no_nulls() -> None:
    dumped = dump_status(begun())
    assert dumped["stages"][0]["attempts"][0]["jobUid"] == "job-uid"
    assert "completionTime" not in dumped


@pytest.mark.parametrize(
    "text", ["9999-12-31T00:00:00Z", "1969-12-31T00:00:00Z", "0001-01-01T00:00:00Z", "2026-02-30T00:00:00Z"]
)
def test_a_status_with_an_instant_that_cannot_be_calculated_with_is_none(text: str) -> None:
    """The schema takes it; adding a day to it must not end a list of all runs."""
    with pytest.raises(ValidationError):
        Status.model_validate({"completionTime": text})


@pytest.mark.parametrize(
    ("metrics", "score"),
    [(["exact_match"], "0.02→0.97"), (["exact_match", "anls"], "0.02→0.97"), (["vqa_accuracy", "exact_match"], "")],
)
def test_the_score_that_is_shown_is_that_of_the_first_metric_or_none(metrics: list[str], score: str) -> None:
    """One that has judged no question has no score, and that of another one has no name there."""
    status = walk({"evaluation": {"metrics": metrics, "workers": {"gpus": 0}}})
    assert status.phase == "Succeeded"
    assert status.summary is not None
    assert status.summary.score == score
