"""How often progress is written, and which."""

from datetime import timedelta

from llava_api.constants import StageName
from llava_api.status import Progress
from llava_operator.progress import ProgressBook
from tests.controller.makers import NOW, NOW_TEXT


def make(step: int) -> Progress:
    return Progress(stage=StageName.TRAIN, attempt=1, pod_uid="p", step=step, total_steps=9, last_update_time=NOW_TEXT)


def after(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def make_book() -> ProgressBook:
    return ProgressBook(interval_s=15, writes_per_s=2)


def test_newest_report_of_the_attempt_counts() -> None:
    book = make_book()
    book.put("run", make(1))
    book.put("run", make(2))
    assert book.newest("run", StageName.TRAIN, 1) == make(2)
    assert book.newest("run", StageName.TRAIN, 2) is None
    assert book.newest("run", StageName.MERGE, 1) is None
    assert book.newest("other", StageName.TRAIN, 1) is None


def test_first_report_is_due_at_once_and_the_next_after_the_interval() -> None:
    book = make_book()
    book.put("run", make(1))
    assert book.due_at("run", NOW) == NOW
    book.note_written("run", make(1), NOW)
    assert book.newest("run", StageName.TRAIN, 1) is None
    assert book.due_at("run", NOW) == NOW + after(15)


def test_report_that_came_during_the_write_is_kept() -> None:
    book = make_book()
    book.put("run", make(2))
    book.note_written("run", make(1), NOW)
    assert book.newest("run", StageName.TRAIN, 1) == make(2)


def test_writes_of_all_runs_together_are_bounded() -> None:
    book = make_book()
    for name in ("a", "b", "c"):
        book.note_written(name, make(1), NOW)
    assert book.due_at("d", NOW) == NOW + after(1.5)
    assert book.due_at("d", NOW + after(60)) == NOW + after(60)


def test_forgotten_run_starts_over() -> None:
    book = make_book()
    book.note_written("run", make(1), NOW)
    book.forget("run")
    assert book.due_at("run", NOW + after(1)) == NOW + after(1)
