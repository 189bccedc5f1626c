"""The table of failures: that it fits together, and that each end of a stage names the test that causes it for real."""

import pytest

from llava_api.failures import DISRUPTIONS, FAILURES, Failure
from tests.named import source_of

OF_STAGES = [failure for failure in FAILURES if failure.exit_code is not None]


@pytest.mark.parametrize("row", OF_STAGES, ids=lambda row: row.reason)
def test_every_exit_code_is_caused_by_the_test_that_it_names(row: Failure) -> None:
    assert f"Reason.{row.reason.name}" in source_of(row.test), f"{row.test} is about something else"
    assert row.test.startswith("tests/trainer/"), "the stage's own process causes it"


@pytest.mark.parametrize("row", [row for row in FAILURES if row.exit_code is None], ids=lambda row: row.reason)
def test_every_other_row_is_caused_by_the_test_that_it_names(row: Failure) -> None:
    assert source_of(row.test)


def test_what_the_cluster_does_to_a_run_is_retried_and_counts_nothing() -> None:
    rows = {row.reason: row for row in FAILURES}
    assert {(rows[reason].retryable, rows[reason].counts) for reason in DISRUPTIONS.values()} == {(True, False)}


def test_each_row_is_one_thing() -> None:
    for row in FAILURES:
        assert not (row.waits and (row.retryable or row.exit_code is not None)), row.reason
        assert row.counts is False or not row.waits, row.reason
        assert row.counts or not row.first_is_free, row.reason
        assert row.observed.endswith("."), row.reason
        assert "|" not in row.observed + row.hint, f"{row.reason}: it would end the table's cell"


@pytest.mark.parametrize("row", [row for row in FAILURES if row.retryable], ids=lambda row: row.reason)
def test_nobody_is_asked_to_do_what_the_operator_does(row: Failure) -> None:
    assert "create the run again" not in row.hint
