"""A process that does not get any further is noticed, whatever it is at; one that saves is left alone."""

import threading
import time

import pytest

from llava_api.failures import Reason
from llava_trainer.training.watchdog import Doing, Watchdog
from llava_trainer.training.worker import explain_stall

LIMIT_S = 0.2


def await_stall(*beats: Doing) -> list[Doing]:
    stalled: list[Doing] = []
    heard = threading.Event()

    def note(doing: Doing) -> None:
        stalled.append(doing)
        heard.set()

    with Watchdog(LIMIT_S, note) as watchdog:
        for doing in beats:
            watchdog.beat(doing)
        heard.wait(10 if beats and beats[-1] is not Doing.SAVING else 2)
    return stalled


@pytest.mark.parametrize("doing", [Doing.LOADING, Doing.COMPUTING, Doing.WAITING])
def test_a_process_that_stands_still_is_noticed(doing: Doing, capfd: pytest.CaptureFixture[str]):
    assert await_stall(Doing.LOADING, doing) == [doing]
    # All threads' stacks: this one's among them.
    assert "await_stall" in capfd.readouterr().err


def test_nothing_is_noticed_before_the_first_beat_or_while_saving():
    assert await_stall() == []
    assert await_stall(Doing.COMPUTING, Doing.SAVING) == []


@pytest.mark.parametrize("doing", [Doing.COMPUTING, Doing.SAVING])
def test_how_far_it_is_is_asked_once_before_it_counts_as_hanging(doing: Doing):
    order: list[str] = []
    asked = threading.Event()

    def ask(doing: Doing) -> None:
        order.append(f"asked: it {doing}")
        asked.set()

    with Watchdog(LIMIT_S, lambda doing: order.append("gave up"), ask) as watchdog:
        watchdog.beat(doing)
        assert asked.wait(10)
        time.sleep(10 * LIMIT_S)
    assert order == [f"asked: it {doing}", *(["gave up"] if doing is Doing.COMPUTING else [])]


def test_whoever_waits_is_not_the_cause():
    told = [explain_stall(3, doing, 300.0) for doing in (Doing.LOADING, Doing.WAITING)]
    assert [word.lost_peer for word in told] == [False, True]
    assert {word.failure.reason for word in told} == {Reason.WORKER_STALLED}
    assert told[0].failure.message == (
        "training process 3 has not gone on for 300 s: it loads samples; the stacks are in its log"
    )
