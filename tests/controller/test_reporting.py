"""The reporting endpoint: tokens, and every answer that a report may get."""

import asyncio
import json
import logging
from contextlib import suppress
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_api.constants import StageName
from llava_api.report import ProgressAnswer, ProgressReport
from llava_api.status import Status
from llava_operator.deciding.status import dump_status
from llava_operator.kube.objects import Key, Object
from llava_operator.kube.reviews import MAX_REVIEWS, BusyError
from llava_operator.reporting.acceptance import (
    MAX_BODY,
    REPORTS_AT_ONCE,
    REPORTS_PER_S,
    Refusal,
    RefusedError,
    _to_progress,
    parse_report,
)
from llava_operator.reporting.claims import Speaker, read_claims
from llava_operator.reporting.tokens import (
    ACCEPTED_FOR_S,
    MAX_CACHED,
    REFUSALS,
    REFUSALS_PER_S,
    TokenReviewer,
)
from llava_operator.serving.connections import Limits
from llava_operator.serving.lines import LINES_AT_ONCE
from tests.controller.desk import (
    EARLIER_JOB_UID,
    GOOD,
    HOST,
    Client,
    Clock,
    Desk,
    ReviewServer,
    encode_part,
    make_report,
    make_token,
    pod_object,
    review_of,
)
from tests.controller.makers import FROM_SCRATCH, KEY, NOW, RUN_UID, walk
from tests.controller.virtual import run_virtually

EVERYBODY_COMES = Limits(new_at_once=1000, new_per_source_at_once=1000, requests_per_source_per_s=1000)
POD_0 = Speaker(pod=Key(KEY.namespace, "pod-0"), pod_uid="pod-0-uid")


# --- what tokens claim


def test_claims_of_a_token() -> None:
    assert read_claims(GOOD) == POD_0
    assert read_claims(make_token(aud="llava-finetune-operator")) == POD_0
    assert read_claims(make_token(aud=["a", "llava-finetune-operator"])) == POD_0


@pytest.mark.parametrize(
    "token",
    [
        "", ".", "..", "a.b.c", "a.b", f"{GOOD}.x", f"x{GOOD[1:]}\udc80", GOOD.replace(".", "\u00e9."),
        make_token(aud="somebody-else"), make_token(aud=[]), make_token(aud=None), make_token(aud={"a": 1}),
        make_token(**{"kubernetes.io": None}), make_token(**{"kubernetes.io": {"namespace": "n"}}),
        make_token(**{"kubernetes.io": {"namespace": 5, "pod": {"name": "p", "uid": "u"}}}),
        make_token(**{"kubernetes.io": {"namespace": "n", "pod": {"name": "", "uid": "u"}}}),
        make_token(**{"kubernetes.io": {"namespace": "n", "pod": {"name": "p", "uid": "u" * 65}}}),
        make_token(**{"kubernetes.io": {"namespace": "n", "pod": {"name": "\ud800", "uid": "u"}}}),
        make_token(filler="x" * 8000), f"a.{encode_part(b'[' * 4000)}.c", f"a.{encode_part(b'1' * 4400)}.c",
        f"a.{encode_part(b'[1]')}.c", f"a.{encode_part(bytes([255, 254]))}.c",
    ],
)  # fmt: skip
def test_tokens_that_claim_nothing_for_us(token: str) -> None:
    assert read_claims(token) is None


@given(st.text() | st.tuples(st.binary(), st.binary() | st.text().map(str.encode), st.binary()).map(
    lambda parts: ".".join(map(encode_part, parts))
) | st.dictionaries(st.sampled_from(["aud", "kubernetes.io", "x"]), st.recursive(
    st.none() | st.integers() | st.text() | st.just("llava-finetune-operator"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["namespace", "pod", "name", "uid"]), inner, max_size=4), max_leaves=8,
)).map(lambda claims: f"e30.{encode_part(json.dumps(claims).encode())}.x"))  # fmt: skip
def test_no_token_gets_an_error_out_of_reading_it(token: str) -> None:
    claimed = read_claims(token)
    assert claimed is None or (claimed.pod.name and claimed.pod_uid)


# --- tokens


async def review(reviewer: TokenReviewer, token: str = GOOD, *, uid: str = "pod-0-uid", source: str = "10.0.0.9"):
    claimed = Speaker(pod=Key(KEY.namespace, "pod-0"), pod_uid=uid)
    return await reviewer.review(token, claimed, source)


def make_reviewer(server: ReviewServer, clock: Clock | None = None) -> TokenReviewer:
    return TokenReviewer(server, clock=clock or Clock())  # type: ignore[arg-type]


def forged(number: int = 0) -> str:
    return make_token(salt=f"forged-{number}")


async def test_accepted_token_is_not_asked_about_for_a_minute() -> None:
    server, clock = ReviewServer(), Clock()
    reviewer = make_reviewer(server, clock)
    for _ in range(3):
        assert await review(reviewer) == POD_0
    assert server.asked == [GOOD]
    clock.now += ACCEPTED_FOR_S
    assert await review(reviewer) == POD_0
    assert server.asked == [GOOD, GOOD]


@pytest.mark.parametrize(
    "answer",
    [
        review_of(authenticated=False),
        review_of(audiences=["somebody-else"]),
        review_of(audiences=[]),
        review_of(user={"username": "admin", "extra": {}}),
        review_of(user={"username": "system:serviceaccount:team:default", "extra": {}}),
        {},
    ],
)
async def test_tokens_that_are_not_for_us_are_refused(answer: Object) -> None:
    assert await review(make_reviewer(ReviewServer(answer=answer))) is None


async def test_refused_tokens_push_no_accepted_one_out() -> None:
    server, clock = ReviewServer(), Clock()
    reviewer = make_reviewer(server, clock)
    await review(reviewer)
    for number in range(MAX_CACHED + 1):
        clock.now += 0.001
        assert await review(reviewer, forged(number), source=f"10.1.{number // 256}.{number % 256}") is None
    assert len(server.asked) == MAX_CACHED + 2
    assert await review(reviewer) == POD_0
    assert len(server.asked) == MAX_CACHED + 2


async def test_memory_of_accepted_tokens_is_bounded() -> None:
    server = ReviewServer()
    reviewer = make_reviewer(server)
    tokens = [make_token(number=number) for number in range(MAX_CACHED + 1)]
    for token in [*tokens, tokens[-1], tokens[0]]:
        await review(reviewer, token)
    assert server.asked == [*tokens, tokens[0]]


async def test_too_many_reviews_at_once_wait_for_each_other_and_not_for_ever() -> None:
    server = ReviewServer(gate=asyncio.Event())
    assert server.gate is not None
    reviewer = make_reviewer(server)
    waiting = [asyncio.create_task(review(reviewer, forged(n), uid=str(n), source=str(n))) for n in range(MAX_REVIEWS)]
    next_one = asyncio.create_task(review(reviewer))
    await asyncio.sleep(0.01)
    assert len(server.asked) == MAX_REVIEWS
    server.gate.set()
    assert await asyncio.gather(*waiting) == [None] * MAX_REVIEWS
    assert await next_one == POD_0


def test_a_review_that_finds_no_place_is_put_off() -> None:
    async def wait() -> None:
        reviewer = make_reviewer(ReviewServer(gate=asyncio.Event()))
        held = [asyncio.create_task(review(reviewer, forged(n), uid=str(n))) for n in range(MAX_REVIEWS)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await review(reviewer)
        for task in held:
            task.cancel()

    run_virtually(wait())


async def test_forged_tokens_of_one_pod_take_one_review_at_a_time_and_none_of_others() -> None:
    server = ReviewServer(gate=asyncio.Event())
    assert server.gate is not None
    reviewer = make_reviewer(server)
    first = asyncio.create_task(review(reviewer, forged(), uid="victim"))
    await asyncio.sleep(0)
    for number in range(1, 100):
        with pytest.raises(BusyError):
            await review(reviewer, forged(number), uid="victim", source=f"10.2.0.{number}")
    other = asyncio.create_task(review(reviewer))
    await asyncio.sleep(0)
    assert server.asked == [forged(), GOOD]
    server.gate.set()
    assert await asyncio.gather(first, other) == [None, POD_0]


async def test_an_address_whose_tokens_are_refused_waits() -> None:
    server, clock = ReviewServer(), Clock()
    reviewer = make_reviewer(server, clock)
    for number in range(REFUSALS):
        assert await review(reviewer, forged(number)) is None
    with pytest.raises(BusyError):
        await review(reviewer, GOOD)
    assert await review(reviewer, GOOD, source="10.0.0.10") == POD_0
    clock.now += 1 / REFUSALS_PER_S
    assert await review(reviewer, forged()) is None
    assert len(server.asked) == REFUSALS + 2


async def test_a_token_that_was_accepted_waits_for_no_forged_one() -> None:
    server, clock = ReviewServer(), Clock()
    reviewer = make_reviewer(server, clock)
    await review(reviewer)
    for number in range(REFUSALS):
        await review(reviewer, forged(number))
    clock.now += ACCEPTED_FOR_S
    server.gate = asyncio.Event()
    held = asyncio.create_task(review(reviewer, forged(), source="10.0.0.10"))
    await asyncio.sleep(0)
    again = asyncio.create_task(review(reviewer))
    await asyncio.sleep(0)
    server.gate.set()
    assert await asyncio.gather(held, again) == [None, POD_0]


async def test_a_token_that_is_taken_back_is_forgotten() -> None:
    server, clock = ReviewServer(), Clock()
    reviewer = make_reviewer(server, clock)
    await review(reviewer)
    clock.now += ACCEPTED_FOR_S
    server.answer = review_of(authenticated=False)
    assert await review(reviewer) is None
    assert await review(reviewer) is None
    assert len(server.asked) == 3


# --- reports


JUNK = {
    "no token": "nonsense",
    "another audience": make_token(aud=["https://kubernetes.default.svc"]),
    "unknown pod": make_token("pod-77"),
    "another uid": make_token(**{"kubernetes.io": {"namespace": "team", "pod": {"name": "pod-0", "uid": "other"}}}),
    "second pod": make_token("pod-1"),
    "pod of another Job": make_token("old-0"),
}


@pytest.mark.parametrize("token", JUNK.values(), ids=JUNK.keys())
async def test_junk_is_refused_before_anybody_is_asked(token: str) -> None:
    """Eight such tokens once made every other report a 503."""
    desk = Desk()
    desk.children.note_pod(pod_object("pod-1", index="1"))
    desk.children.note_pod(pod_object("old-0", job=EARLIER_JOB_UID))
    desk.server.gate = asyncio.Event()
    async with desk.serve(EVERYBODY_COMES) as client:
        for _ in range(MAX_REVIEWS):
            assert (await client.post(make_report(), token=f"Bearer {token}"))[0] in (401, 403, 409)
        assert desk.server.asked == []
        desk.server.gate = None
        assert (await client.post(make_report()))[0] == 200
    assert len(desk.codes) == MAX_REVIEWS + 1


async def test_the_reviewed_pod_counts_and_not_the_claimed_one() -> None:
    desk = Desk()
    desk.children.note_pod(pod_object("pod-1", index="1"))
    extra = {
        "authentication.kubernetes.io/pod-name": ["pod-1"], "authentication.kubernetes.io/pod-uid": ["pod-1-uid"],
    }  # fmt: skip
    desk.server.answer = review_of(user={"username": "system:serviceaccount:team:default", "extra": extra})
    assert (await desk.take(make_report()))[0] == 403
    assert desk.server.asked == [GOOD]


async def test_good_report_is_taken_and_the_run_looked_at() -> None:
    desk = Desk()
    assert await desk.take(make_report(loss=1.5, etaSeconds=61.6)) == (200, "")
    taken = desk.progress.newest(RUN_UID, StageName.TRAIN, 1)
    assert taken is not None
    assert (taken.step, taken.loss, taken.eta_seconds, taken.pod_uid) == (3, 1.5, 62, "pod-0-uid")
    assert (taken.unit, taken.message) == ("steps", "")
    assert desk.queue.depth == 1
    assert desk.codes == [200]


async def test_alignment_reports_as_training_does() -> None:
    desk = Desk(walk(FROM_SCRATCH, StageName.ALIGN))
    assert await desk.take(make_report(stage="align", loss=2.5)) == (200, "")
    taken = desk.progress.newest(RUN_UID, StageName.ALIGN, 1)
    assert taken is not None
    assert (taken.stage, taken.loss) == (StageName.ALIGN, 2.5)
    assert (await desk.take(make_report(stage="train")))[0] == 409


async def test_what_is_being_fetched_is_taken_over() -> None:
    desk = Desk()
    assert await desk.take(make_report(unit="bytes", message="fetching hf://a/b")) == (200, "")
    taken = desk.progress.newest(RUN_UID, StageName.TRAIN, 1)
    assert taken is not None
    assert (taken.unit, taken.message) == ("bytes", "fetching hf://a/b")


@pytest.mark.parametrize(
    "token",
    ["", "Bearer ", f"Basic {GOOD}", "Bearer bad", f"Bearer {make_token(salt='forged')}", "Bearer a.\u00ffa.b"],
)
async def test_unknown_speakers_are_401(token: str) -> None:
    desk = Desk()
    assert (await desk.take(make_report(), token=token))[0] == 401
    assert (desk.codes, desk.refused) == ([401], [Refusal.TOKEN])


async def test_api_server_that_is_down_is_503() -> None:
    desk = Desk()
    desk.server.is_down = True
    assert (await desk.take(make_report()))[0] == 503
    assert desk.refused == [Refusal.BUSY]


@pytest.mark.parametrize(
    "pod",
    [
        None,
        pod_object("another"),
        pod_object(index="1"),
        pod_object(containerStatuses=[{"name": "stage", "state": {"terminated": {"exitCode": 0}}}]),
    ],
    ids=["unknown", "another uid", "second pod", "ended"],
)
async def test_pods_that_have_no_say_are_403(pod: Object | None) -> None:
    desk = Desk()
    desk.children.note_pod(pod_object(), deleted=True)
    if pod is not None:
        # The token is that of pod-0, whatever stands behind the name by now.
        pod["metadata"]["name"] = "pod-0"
        desk.children.note_pod(pod)
    assert (await desk.take(make_report()))[0] == 403
    is_second = pod == pod_object(index="1")
    assert desk.refused == [Refusal.NOT_FIRST_POD if is_second else Refusal.NOT_A_POD_OF_A_RUN]


async def test_pods_of_another_job_are_409() -> None:
    desk = Desk()
    desk.children.note_pod(pod_object(job=EARLIER_JOB_UID))
    assert (await desk.take(make_report()))[0] == 409
    assert desk.refused == [Refusal.NOT_CURRENT]


async def test_pod_whose_run_is_gone_is_409() -> None:
    desk = Desk()
    desk.runs.forget(KEY)
    assert (await desk.take(make_report()))[0] == 409
    assert desk.refused == [Refusal.NOT_CURRENT]


@pytest.mark.parametrize("change", [{"runUid": "other"}, {"stage": "merge"}, {"attempt": 2}])
async def test_late_reports_are_409_and_change_nothing(change: dict[str, Any]) -> None:
    desk = Desk()
    status, error = await desk.take(make_report(**change))
    assert (status, desk.refused) == (409, [Refusal.NOT_CURRENT])
    assert "works on train-1" in error
    assert desk.progress.newest(RUN_UID, StageName.TRAIN, 1) is None


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "no JSON"),
        (b"[1]", "Input should be a valid dictionary"),
        (b"{}", "runUid: Field required"),
        (make_report(step=-1), "step"),
        (make_report(losses=[0.1] * 61), "losses"),
        (b"[" * 30_000, "no JSON"),
    ],
)
async def test_bodies_that_are_no_report_are_400(body: bytes, fault: str) -> None:
    desk = Desk()
    status, error = await desk.take(body)
    assert (status, desk.refused) == (400, [Refusal.UNREADABLE])
    assert fault in error


async def test_long_bodies_are_413() -> None:
    desk = Desk()
    assert (await desk.take(b"x" * (MAX_BODY + 1)))[0] == 413
    assert desk.refused == [Refusal.UNREADABLE]


async def test_hasty_reports_are_429_without_being_read() -> None:
    desk = Desk()
    async with desk.serve() as client:
        codes = [(await client.post(make_report()))[0] for _ in range(REPORTS_AT_ONCE)]
        assert codes == [200] * REPORTS_AT_ONCE
        assert (await client.post(b"no report"))[0] == 429
        assert desk.refused == [*[None] * REPORTS_AT_ONCE, Refusal.TOO_OFTEN]
        desk.clock.now += 1 / REPORTS_PER_S
        assert (await client.post(make_report()))[0] == 200


async def test_the_answer_says_when_the_next_report_is_welcome() -> None:
    desk = Desk()
    async with desk.serve() as client, aiohttp.ClientSession(headers={"Authorization": f"Bearer {GOOD}"}) as session:

        async def ask() -> ProgressAnswer:
            post = session.post(client.url, data=make_report(), ssl=client.trusted, server_hostname=HOST)
            async with post as answer:
                assert (answer.status, answer.content_type) == (200, "application/json")
                return ProgressAnswer.model_validate_json(await answer.read())

        assert (await ask()).next_report_seconds == 15
        taken = desk.progress.newest(RUN_UID, StageName.TRAIN, 1)
        assert taken is not None
        desk.progress.note_written(RUN_UID, taken, desk.now)
        desk.now += timedelta(seconds=5)
        assert (await ask()).next_report_seconds == 10 + 15


@pytest.mark.parametrize(("idle_s", "lives"), [(30.0, True), (15.0, False)])
async def test_a_connection_that_would_be_idle_for_too_long_is_ended(idle_s: float, lives: bool) -> None:
    desk = Desk()
    async with desk.serve(Limits(idle_s=idle_s)) as client:
        head, _ = await exchange(client, request_of(make_report()))
    assert (b"connection: close" not in head.lower()) is lives


async def test_no_text_of_a_stranger_begins_a_line_or_fills_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    desk = Desk()
    async with desk.serve(EVERYBODY_COMES) as client:
        status, error = await client.post(make_report(runUid="x\nINFO all is well\x1b[2J"))
        assert (status, "run x\\nINFO all is well\\x1b[2J, but" in error) == (409, True)
        bound = {"namespace": "team", "pod": {"name": "z" * 250, "uid": "u"}}
        assert (await client.post(b"", token=f"Bearer {make_token(**{'kubernetes.io': bound})}"))[0] == 403
        for _ in range(30):
            assert (await client.post(b"", token="Bearer nonsense"))[0] == 401
        desk.clock.now += 60
        await client.post(b"", token="Bearer nonsense")
    lines = [line for line in caplog.messages if "refused with" in line]
    assert len(lines) == LINES_AT_ONCE + 1
    assert all(line.isprintable() and len(line) < 700 for line in lines)
    assert lines[-1].endswith("(12 others before were not logged)")


@pytest.mark.parametrize(
    "request_text",
    [
        b"POST /v1/progress HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %b\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"zz\r\n",
        b"POST /v1/progress HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %b\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 3\r\n\r\nabc",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nx: " + b"y" * 9000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n" + b"x: y\r\n" * 40 + b"\r\n",
    ],
    ids=["chunks", "gzip", "no HTTP", "long header", "many headers"],
)
async def test_what_is_no_request_of_ours_is_400_and_ends_the_connection(
    request_text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk()
    async with desk.serve() as client:
        head, rest = await exchange(client, request_text.replace(b"%b", GOOD.encode()))
        assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
        assert rest.endswith(b"")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("target", [b"GET /v1/progress", b"POST /other", b"POST /v1/progress"])
async def test_a_refusal_ends_the_connection(target: bytes) -> None:
    async with Desk().serve() as client:
        head, _ = await exchange(client, target + b" HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
    assert head.split()[1] in (b"401", b"404", b"405")
    assert b"connection: close" in head.lower()


def request_of(body: bytes) -> bytes:
    head = (
        f"POST /v1/progress HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {GOOD}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def exchange(client: Client, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    reader, writer = await client.connect()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:")), 0)
    body = await reader.readexactly(length)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return head, body


def test_numbers_that_are_not_finite_are_left_out() -> None:
    body = make_report()[:-1] + b',"loss":NaN,"gradNorm":1e999,"etaSeconds":-Infinity,"losses":[1.0,NaN,2.0,Infinity]}'
    report = parse_report(body)
    assert (report.loss, report.grad_norm, report.eta_seconds, report.losses) == (None, None, None, (1.0, 2.0))


def test_what_the_trainer_serialises_is_read() -> None:
    report = ProgressReport(run_uid="u", stage=StageName.TRAIN, attempt=1, step=1, total_steps=2, loss=float("nan"))
    assert parse_report(report.model_dump_json().encode()) == report.model_copy(update={"loss": None})


def test_what_a_report_tells_of_volume_and_gpus_gets_into_the_status() -> None:
    body = make_report(peakGpuMemoryBytes=3, volumeFreeBytes=2, volumeSizeBytes=2**53, gradNorm=0.5, checkpointStep=1)
    progress = _to_progress(parse_report(body), "uid", NOW)
    assert (progress.peak_gpu_memory_bytes, progress.volume_free_bytes, progress.volume_size_bytes) == (3, 2, 2**53)
    assert (progress.grad_norm, progress.checkpoint_step) == (0.5, 1)
    older = _to_progress(parse_report(make_report()), "uid", NOW)
    assert (older.peak_gpu_memory_bytes, older.volume_free_bytes, older.volume_size_bytes) == (None, None, None)


def test_report_of_another_version_is_refused() -> None:
    with pytest.raises(RefusedError, match="version"):
        parse_report(make_report(version=2))


@given(text=st.binary() | st.text().map(str.encode) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_body_is_a_report_or_refused(text: bytes) -> None:
    with suppress(RefusedError):
        parse_report(text)


@given(message=st.text(st.characters(), max_size=256), losses=st.lists(st.floats(), max_size=60), eta=st.floats())
def test_any_report_that_is_taken_can_be_written(message: str, losses: list[float], eta: float) -> None:
    body = make_report(message=message, losses=losses, etaSeconds=eta)
    try:
        progress = _to_progress(parse_report(body), "uid", NOW)
    except RefusedError:
        return
    json.dumps(dump_status(Status(progress=progress)), allow_nan=False, ensure_ascii=False).encode()
