"""What a write has ended, and that each end is counted once, whatever becomes of the write and of the operator."""

from typing import Any

from llava_api.constants import Phase, StageName
from llava_api.failures import Reason
from llava_api.status import Accounting, AttemptState, FailureStatus, StageState, Status
from llava_operator.deciding.policy import Policy
from llava_operator.kube.errors import RetryableError
from llava_operator.kube.objects import Key, Object
from llava_operator.run import stage_of
from llava_operator.telemetry.endings import AttemptEnd, Endings, RunEnd, StageEnd, compare
from tests.controller.in_memory import ApiServer, Operator
from tests.controller.makers import (
    KEY,
    ONCE,
    begun,
    commit,
    failed,
    job_end,
    make_job,
    see,
    succeeded,
    walk,
)


def fail(status: Status, spec: dict[str, Any] | None = None) -> Status:
    """The status when the pod of the current attempt has failed."""
    job = make_job(status, failed=job_end())
    return commit(see(status, spec=spec, job=job, pods=(failed(exit_code=67 if spec else 71),)))


def test_nothing_ends_when_a_run_begins() -> None:
    assert compare(Status(), begun()) == Endings()
    assert compare(begun(), begun()) == Endings()


def test_stage_and_run_end_with_the_last_result() -> None:
    status = begun(StageName.EVALUATE)
    done = commit(see(status, job=make_job(status, complete=True), pods=(succeeded(StageName.EVALUATE),)))
    end = StageEnd(stage=StageName.EVALUATE, state=StageState.SUCCEEDED, seconds=0.0)
    ended = compare(status, done)
    assert (ended.run, ended.stages, ended.attempts) == (RunEnd(phase=Phase.SUCCEEDED, reason=""), (end,), ())
    assert compare(done, done) == Endings()


def test_attempt_that_is_followed_by_another_ends_no_stage() -> None:
    status = begun(StageName.TRAIN)
    ended = compare(status, fail(status))
    assert (ended.run, ended.stages) == (None, ())
    assert ended.attempts == (AttemptEnd(stage=StageName.TRAIN, reason=Reason.WORKER_KILLED),)


def test_failure_for_good_ends_attempt_stage_and_run() -> None:
    status = begun(StageName.TRAIN)
    ended = compare(status, fail(status, ONCE))
    assert ended.run == RunEnd(phase=Phase.FAILED, reason=Reason.LOSS_NOT_FINITE)
    assert [(end.stage, end.state) for end in ended.stages] == [(StageName.TRAIN, StageState.FAILED)]
    assert ended.attempts == (AttemptEnd(stage=StageName.TRAIN, reason=Reason.LOSS_NOT_FINITE),)


def test_stage_takes_from_its_begin_to_its_end() -> None:
    running = begun(StageName.TRAIN)
    stage = stage_of(running, StageName.TRAIN)
    over = stage.model_copy(update={
        "state": StageState.SUCCEEDED, "start_time": "2026-11-01T12:00:00Z", "completion_time": "2026-11-01T13:00:05Z",
    })  # fmt: skip
    after = running.model_copy(update={"stages": tuple(over if one is stage else one for one in running.stages)})
    assert compare(running, after).stages == (
        StageEnd(stage=StageName.TRAIN, state=StageState.SUCCEEDED, seconds=3605.0),
    )


def test_stage_that_was_never_begun_has_no_duration() -> None:
    running = begun(StageName.TRAIN)
    refused = stage_of(running, StageName.MERGE).model_copy(update={"state": StageState.FAILED})
    stages = tuple(refused if one.name is StageName.MERGE else one for one in running.stages)
    assert compare(running, running.model_copy(update={"stages": stages})).stages == ()


def test_seconds_of_gpus_are_what_has_come_to_the_account() -> None:
    before = Status(accounting=Accounting(productive_gpu_seconds=100, lost_gpu_seconds=7))
    after = Status(accounting=Accounting(productive_gpu_seconds=160, lost_gpu_seconds=7))
    assert compare(before, after) == Endings(productive_gpu_seconds=60)
    assert compare(Status(), before) == Endings(productive_gpu_seconds=100, lost_gpu_seconds=7)
    assert compare(after, before) == Endings(), "a counter never falls"


def test_one_that_is_tried_again_and_fails_at_once_has_failed_twice() -> None:
    failure = FailureStatus(reason=Reason.DEADLINE_EXCEEDED)
    first = Status(phase=Phase.FAILED, completion_time="2026-11-01T12:00:00Z", failure=failure)
    again = first.model_copy(update={"completion_time": "2026-11-01T13:00:00Z"})
    assert compare(first, first).run is None
    assert compare(first, again).run == RunEnd(phase=Phase.FAILED, reason=Reason.DEADLINE_EXCEEDED)


def test_reason_of_another_version_is_one_of_the_known() -> None:
    """Whoever may write a status would make series without end."""
    status = begun(StageName.TRAIN)
    done = fail(status, ONCE)
    stage = stage_of(done, StageName.TRAIN)
    newest = stage.attempts[-1].model_copy(update={"because": "ByATenant"})
    assert newest.state is AttemptState.GONE
    stages = tuple(
        one.model_copy(update={"attempts": (newest,)}) if one.name is StageName.TRAIN else one for one in done.stages
    )
    assert done.failure is not None
    failure = done.failure.model_copy(update={"reason": "ByATenant"})
    ended = compare(status, done.model_copy(update={"stages": stages, "failure": failure}))
    assert ended.run == RunEnd(phase=Phase.FAILED, reason="Other")
    assert [end.reason for end in ended.attempts] == ["Other"]


# --- each write that was carried out, and no other


class Noted:
    """What a reconciler has noted, in all its lives."""

    def __init__(self, operator: Operator) -> None:
        self.ended: list[Endings] = []
        self.operator = operator
        self.hook()

    def hook(self) -> None:
        self.operator.reconciler.note_written = self._note

    def restart(self) -> None:
        self.operator.new_process()
        self.hook()

    def _note(self, key: Key, before: Status, after: Status) -> None:
        assert key == KEY
        if (ended := compare(before, after)) != Endings():
            self.ended.append(ended)


def about_to_fail() -> tuple[ApiServer, Operator]:
    """A run that the next pass finds to be asking for what is not allowed, and ends."""
    server = ApiServer()
    server.put_run(image={"reference": "evil.example/x"})
    operator = Operator(server)
    operator.policy = Policy(image_repositories=())
    operator.new_process()
    return server, operator


def ends(noted: Noted) -> list[RunEnd | None]:
    return [ended.run for ended in noted.ended]


NOT_ALLOWED = RunEnd(phase=Phase.FAILED, reason=Reason.NOT_ALLOWED)


async def test_an_end_is_noted_once_and_not_again_by_another_process() -> None:
    _, operator = about_to_fail()
    noted = Noted(operator)
    await operator.settle()
    assert ends(noted) == [NOT_ALLOWED]
    noted.restart()
    await operator.settle()
    assert ends(noted) == [NOT_ALLOWED]


class LossyPatch:
    """Patches of the API server whose answers, or the patches themselves, are lost."""

    def __init__(self, server: ApiServer, *, arrive: bool) -> None:
        self.server, self.real, self.arrive = server, server.patch, arrive

    async def __call__(self, *args: Any, **kwargs: Any) -> Object:
        if self.arrive:
            await self.real(*args, **kwargs)
        raise RetryableError("no answer in time")


async def pass_that_fails(operator: Operator) -> None:
    try:
        await operator.settle()
    except RetryableError as error:
        await operator.reconciler.tell_error(KEY, error)
    else:
        raise AssertionError("the patch did not fail")


async def test_a_write_that_did_not_arrive_is_noted_when_it_does() -> None:
    server, operator = about_to_fail()
    noted = Noted(operator)
    lossy = LossyPatch(server, arrive=False)
    server.patch = lossy  # type: ignore[method-assign]
    for _ in range(3):
        await pass_that_fails(operator)
    assert ends(noted) == []
    server.patch = lossy.real  # type: ignore[method-assign]
    await operator.settle()
    assert ends(noted) == [NOT_ALLOWED]


async def test_a_write_whose_answer_was_lost_is_noted_once() -> None:
    server, operator = about_to_fail()
    noted = Noted(operator)
    lossy = LossyPatch(server, arrive=True)
    server.patch = lossy  # type: ignore[method-assign]
    while server.status.phase is not Phase.FAILED:
        await pass_that_fails(operator)
    server.patch = lossy.real  # type: ignore[method-assign]
    for _ in range(3):
        await operator.settle()
    assert ends(noted) == [NOT_ALLOWED]


async def test_a_conflict_ends_nothing() -> None:
    server, operator = about_to_fail()
    noted = Noted(operator)
    real, met = server.patch, list[str]()

    async def interfere(*args: Any, **kwargs: Any) -> Object:
        if args[3].get("status", {}).get("phase") == Phase.FAILED:
            met.append("the end")
            server.version += 1
            server.objects[args[0], args[2]]["metadata"]["resourceVersion"] = str(server.version)
        return await real(*args, **kwargs)

    server.patch = interfere  # type: ignore[method-assign]
    for _ in range(3):
        assert await operator.step() == 0.0
    assert (ends(noted), len(met)) == ([], 3)
    server.patch = real  # type: ignore[method-assign]
    await operator.settle()
    assert ends(noted) == [NOT_ALLOWED]


async def test_a_whole_run_is_noted_stage_by_stage() -> None:
    """The statuses of a run that succeeds, one after the other."""
    seen: list[Endings] = []
    status = Status()
    for name in (StageName.PREPARE, StageName.TRAIN, StageName.MERGE, StageName.EVALUATE):
        after = walk({}, name)
        seen.append(compare(status, after))
        status = after
    seen.append(compare(status, walk({})))
    assert [end.stage for ended in seen for end in ended.stages] == [
        StageName.PREPARE, StageName.TRAIN, StageName.MERGE, StageName.EVALUATE,
    ]  # fmt: skip
    assert [ended.run for ended in seen if ended.run] == [RunEnd(phase=Phase.SUCCEEDED, reason="")]
