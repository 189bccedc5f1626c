"""The stage that publishes: when it runs and when it is left out, what its pod is given, what its result comes to."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llava_api.constants import Condition, GateOutcome, Phase, StageName
from llava_api.failures import Reason
from llava_api.report import Published, PublishNumbers, StageFailure, StageResult
from llava_api.run_config import RunConfig
from llava_api.spec import Download, Spec
from llava_api.status import ConditionStatus, StageState, StageStatus, Status
from llava_operator.acting.transitions import list_transitions
from llava_operator.build.common import Platform
from llava_operator.build.config import CONFIG_KEY, build_config_map, build_run_config
from llava_operator.build.job import build_job
from llava_operator.build.resources import build_resources
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Start
from llava_operator.deciding.policy import Policy
from llava_operator.deciding.publication import find_hindrance
from llava_operator.deciding.references import list_claims, list_references
from llava_operator.deciding.status import dump_status
from llava_operator.deciding.waiting import list_needs
from llava_operator.kube.kinds import CONFIG_MAPS, JOBS, RUNS, VOLUME_CLAIMS
from llava_operator.run import attempt_of, current_stage, parse_status, stage_of
from llava_operator.stages import STAGES as STAGE_TABLE
from llava_trainer.evaluation.serving import list_served
from tests.controller.in_memory import ApiServer, Operator
from tests.controller.makers import (
    KEY,
    NOW,
    RESULTS,
    commit,
    failed,
    job_end,
    make_attempt,
    make_job,
    make_run,
    make_spec,
    see,
    succeeded,
    walk,
)
from tests.controller.test_gates import judge, result

PUBLISH, EVALUATE = StageName.PUBLISH, StageName.EVALUATE
PASSED, FAILED, UNDECIDED = GateOutcome.PASSED, GateOutcome.FAILED, GateOutcome.UNDECIDED
PLATFORM = Platform(trainer_image="registry/trainer:1", report_url="https://r/")
DIGEST = f"sha256:{'d' * 64}"
BUCKET = {"address": "s3://models/llava", "secretRef": {"name": "bucket"}}
ONE: dict[str, Any] = {"publish": {"destinations": [BUCKET]}}
EVERYWHERE: dict[str, Any] = {
    "publish": {
        "destinations": [
            BUCKET,
            {"address": "hf://team/invoices@v1", "secretRef": {"name": "hub"}},
            {"address": "oci://registry.svc:5000/llava/invoices:1", "plainHttp": True},
            {"address": "pvc://models/llava/invoices"},
        ],
        "what": "both", "license": "llama2", "signing": {"name": "key"},
        "resources": {"limits": {"memory": "3Gi"}},
    },
    "download": {"caConfigMap": "corporate", "httpsProxy": "http://proxy:3128", "secretRef": {"name": "proxies"}},
}  # fmt: skip
GATES: dict[str, Any] = {
    "gate": {"gate": {}},
    "retention": {"retention": {"dataset": {"source": "pvc://g/s", "format": "llava", "file": "g.json"}}},
}
CONTENTS = [(n, what) for n in range(4) for what in ("merged", "adapter")]


def published(*pairs: tuple[int, str], sent: int = 2**30) -> StageResult:
    """A result that tells of these destinations and contents."""
    numbers = PublishNumbers(
        published=tuple(
            Published.model_validate(
                {"destination": n, "what": what, "revision": f"r{n}", "digest": DIGEST, "size_bytes": 2**31,
                 "sent_bytes": sent}
            )
            for n, what in pairs
        )
    )  # fmt: skip
    return StageResult(stage=PUBLISH, attempt=1, publish=numbers)


def evaluated(spec: dict[str, Any], told: StageResult) -> Status:
    """A run of this spec whose evaluation ends with this."""
    status = walk(spec, EVALUATE)
    pods = (succeeded(EVALUATE, told.to_termination_message()),)
    return commit(see(status, spec=spec, job=make_job(status, complete=True), pods=pods))


def end_with(told: StageResult, spec: dict[str, Any], *, before: dict[str, Any] | None = None) -> Status:
    """A run whose publishing ends with this; ``before`` is the spec that its attempt was committed to with."""
    status = walk(before or spec, PUBLISH)
    pods = (succeeded(PUBLISH, told.to_termination_message()),)
    return commit(see(status, spec=spec, job=make_job(status, complete=True), pods=pods))


def condition(status: Status) -> ConditionStatus | None:
    return next((one for one in status.conditions if one.type is Condition.PUBLISHED), None)


def stage(status: Status) -> StageStatus:
    return stage_of(status, PUBLISH)


# --- whether it runs


def test_a_run_that_names_no_destination_has_no_such_stage() -> None:
    status = walk({})
    assert [one.name for one in status.stages] == ["prepare", "train", "merge", "evaluate"]
    assert condition(status) is None
    assert status.phase is Phase.SUCCEEDED


def test_it_comes_after_evaluation_and_completes_the_run() -> None:
    status = walk(ONE, PUBLISH)
    assert [one.name for one in status.stages][-2:] == ["evaluate", "publish"]
    assert status.phase is not Phase.SUCCEEDED
    held = condition(status)
    assert held is not None
    assert (held.status, held.reason) == ("False", "Running")
    status = walk(ONE)
    assert (status.phase, stage(status).state) == (Phase.SUCCEEDED, StageState.SUCCEEDED)
    held = condition(status)
    assert held is not None
    assert (held.status, held.reason) == ("True", "Succeeded")
    assert status.summary is not None
    assert (status.summary.stage, status.summary.percent) == ("publish", "100")


@pytest.mark.parametrize(
    ("asks", "gate", "retention", "reason"),
    [
        ("gate", FAILED, None, "GateFailed"),
        ("gate", UNDECIDED, None, "GateUndecided"),
        ("retention", None, FAILED, "GateFailed"),
        ("gate retention", PASSED, UNDECIDED, "GateUndecided"),
        ("gate retention", UNDECIDED, FAILED, "GateFailed"),
        # An image that judges nothing has let nothing pass.
        ("gate", None, None, "GateUndecided"),
        ("gate retention", PASSED, None, "GateUndecided"),
    ],
)
def test_what_no_gate_has_let_pass_stays_on_the_volume_and_the_run_succeeds(
    asks: str, gate: GateOutcome | None, retention: GateOutcome | None, reason: str
) -> None:
    evaluation = {"workers": {"gpus": 0}} | {key: value for name in asks.split() for key, value in GATES[name].items()}
    told = result(gate and judge(gate), retention and judge(retention))
    status = evaluated({**ONE, "evaluation": evaluation}, told)
    assert status.phase is Phase.SUCCEEDED
    assert status.completion_time is not None
    assert (stage(status).state, stage(status).reason, stage(status).attempts) == (StageState.SKIPPED, reason, ())
    held = condition(status)
    assert held is not None
    assert (held.status, held.reason, held.message) == ("False", reason, stage(status).message)
    assert held.message.startswith("not published, since a gate has not passed (")
    assert "the model stays on the run's volume. It takes another run: one " in held.message
    conditions = {one.type: one for one in status.conditions}
    assert conditions[Condition.READY].status == "True"
    assert conditions[Condition.COMPLETE].message == "every stage but publish has succeeded"
    assert status.summary is not None
    assert status.summary.stage == "evaluate"
    told_of = [one for one in list_transitions(status) if one.reason == "NotPublished"]
    assert [(one.type, one.note, one.about) for one in told_of] == [("Warning", held.message, "publish")]
    assert not [one for one in list_transitions(status) if one.action == "Wait"]
    assert status.artifacts is not None
    assert status.artifacts.published == ()


@pytest.mark.parametrize(
    ("asks", "outcome", "remedy"),
    [
        ("gate", FAILED, "spec.evaluation.gate.minimumGain"),
        ("gate", UNDECIDED, "spec.dataset.validation"),
        ("retention", FAILED, "spec.mixture"),
        ("retention", UNDECIDED, "spec.evaluation.retention.dataset has more groups"),
    ],
)
def test_it_says_what_it_would_take(asks: str, outcome: GateOutcome, remedy: str) -> None:
    spec = make_spec(evaluation=GATES[asks], **ONE)
    evaluation = evaluated({}, result(**{asks: judge(outcome)})).evaluation
    found = find_hindrance(spec, evaluation)
    assert found is not None
    assert f"{asks} {outcome}: anls gained +0.250" in found.message
    assert remedy in found.message


@pytest.mark.parametrize("asks", ["gate", "retention", "gate retention"])
def test_what_every_gate_has_let_pass_is_published(asks: str) -> None:
    evaluation = {"workers": {"gpus": 0}} | {key: value for name in asks.split() for key, value in GATES[name].items()}
    told = result(**{name: judge(PASSED) for name in asks.split()})
    status = evaluated({**ONE, "evaluation": evaluation}, told)
    running = current_stage(status)
    assert running is not None
    assert running.name is PUBLISH
    assert status.phase is Phase.RUNNING


def test_a_gate_that_nobody_asked_for_holds_nothing_back() -> None:
    running = current_stage(evaluated(ONE, result(judge(FAILED))))
    assert running is not None
    assert running.name is PUBLISH


@pytest.mark.parametrize(
    ("publishes", "is_refused"), [(True, False), (None, True), (False, True)]
)  # fmt: skip
def test_an_image_that_cannot_publish_is_refused_before_anything_is_trained(
    publishes: bool | None, is_refused: bool
) -> None:
    status = commit(see(spec=ONE))
    prepared = RESULTS[StageName.PREPARE]
    assert prepared.prepare is not None
    told = prepared.model_copy(update={"prepare": prepared.prepare.model_copy(update={"publishes": publishes})})
    pods = (succeeded(StageName.PREPARE, told.to_termination_message()),)
    status = commit(see(status, spec=ONE, job=make_job(status, complete=True), pods=pods))
    if not is_refused:
        assert status.phase is Phase.RUNNING
        return
    assert status.failure is not None
    assert (status.phase, status.failure.reason, status.failure.stage) == (Phase.FAILED, "InvalidConfig", "train")
    for words in ("spec.publish is set", "leave spec.image.reference out", "or leave spec.publish out"):
        assert words in status.failure.message
    assert all(not one.attempts for one in status.stages[1:]), "no pod was asked for"
    # A retry changes nothing about the image.
    again = commit(see(status, spec={**ONE, "retry": 1}))
    assert (again.phase, all(not one.attempts for one in again.stages[1:])) == (Phase.FAILED, True)


def test_a_run_that_was_begun_before_there_was_such_a_stage_goes_on_without_it() -> None:
    status = walk({}, EVALUATE)
    status = parse_status({"status": dump_status(status)})
    status = commit(see(status, job=make_job(status, complete=True), pods=(succeeded(EVALUATE),)))
    assert (status.phase, condition(status)) == (Phase.SUCCEEDED, None)


# --- failing, and being tried again


def fail_publishing(reason: Reason, exit_code: int, status: Status | None = None, **spec: Any) -> Status:
    spec = spec or ONE
    status = status or walk(spec, PUBLISH)
    pods = (failed(exit_code=exit_code, stage=PUBLISH, failure=StageFailure(reason=reason, message="no such bucket")),)
    return commit(see(status, spec=spec, job=make_job(status, failed=job_end()), pods=pods))


@pytest.mark.parametrize(
    ("reason", "exit_code"), [(Reason.DESTINATION_REFUSED, 90), (Reason.RESULT_DAMAGED, 91)]
)  # fmt: skip
def test_what_does_not_pass_fails_the_run_and_a_retry_begins_at_publishing(reason: Reason, exit_code: int) -> None:
    status = fail_publishing(reason, exit_code)
    assert status.failure is not None
    assert (status.phase, status.failure.reason, status.failure.stage) == (Phase.FAILED, reason, PUBLISH)
    held = condition(status)
    assert held is not None
    assert (held.status, held.reason) == ("False", reason)
    corrected = {"publish": {"destinations": [{"address": "s3://models/other"}]}, "retry": 1}
    again = commit(see(status, spec=corrected))
    assert [one.state for one in again.stages[:-1]] == [StageState.SUCCEEDED] * 4
    assert again.phase is Phase.RUNNING
    newest = stage(again).newest
    assert newest is not None
    assert newest.number == 2
    assert newest.settings.publish == Spec.model_validate(make_spec(**corrected)).publish
    assert decide(see(again, spec=corrected)) == Start(stage=PUBLISH, attempt=2)


def test_what_may_pass_is_tried_again_with_the_spec_as_it_is_then() -> None:
    status = fail_publishing(Reason.DESTINATION_UNAVAILABLE, 89)
    assert status.phase is Phase.RUNNING
    assert stage(status).next_attempt_time is not None
    corrected = {"publish": {"destinations": [{"address": "s3://models/other"}]}}
    begun = commit(see(status, spec=corrected, now=NOW + timedelta(minutes=1)))
    newest = stage(begun).newest
    assert newest is not None
    assert newest.settings.publish is not None
    assert [one.address for one in newest.settings.publish.destinations] == ["s3://models/other"]


def test_it_is_tried_three_times() -> None:
    status = fail_publishing(Reason.DESTINATION_UNAVAILABLE, 89)
    for attempt in (2, 3):
        status = commit(see(status, spec=ONE, now=NOW + timedelta(hours=attempt)))
        text = StageResult(
            stage=PUBLISH, attempt=attempt, failure=StageFailure(reason=Reason.DESTINATION_UNAVAILABLE, message="x")
        ).to_termination_message()
        pods = (failed(exit_code=89, message=text),)
        status = commit(see(status, spec=ONE, job=make_job(status, failed=job_end()), pods=pods))
    assert (status.phase, stage(status).attempt) == (Phase.FAILED, 3)


# --- the spec changes while an attempt is under way


def test_an_attempt_goes_on_with_what_it_was_committed_to() -> None:
    status = walk(EVERYWHERE, PUBLISH)
    changed = make_run(parse_status({"status": dump_status(status)}), **ONE)
    attempt = attempt_of(changed, stage(status))
    assert attempt.spec.publish == make_spec(**EVERYWHERE).publish
    config = build_run_config(attempt, PLATFORM)
    assert config.publish == attempt.spec.publish
    names = {volume["name"] for volume in build_job(attempt, PLATFORM)["spec"]["template"]["spec"]["volumes"]}
    assert {"secret-publish-0", "secret-publish-1", "secret-signing", "destination-0"} <= names


def test_one_that_waits_takes_the_new_spec_once_it_was_suspended() -> None:
    """As a person gets on whose Secret is not there."""
    status = walk(ONE, EVALUATE)
    status = commit(see(status, spec=ONE, job=make_job(status, complete=True), pods=(succeeded(EVALUATE),)))
    corrected = {"publish": {"destinations": [{"address": "s3://models/other"}]}}
    asleep = commit(see(status, spec={**corrected, "suspend": True}))
    assert asleep.phase is Phase.SUSPENDED
    awake = commit(see(asleep, spec=corrected, now=NOW + timedelta(hours=1)))
    newest = stage(awake).newest
    assert newest is not None
    assert (newest.number, newest.settings.publish) == (2, make_spec(**corrected).publish)
    assert stage(awake).restarts == 0


def test_what_stands_where_is_told_by_the_addresses_that_the_attempt_had() -> None:
    status = end_with(published(*CONTENTS), ONE, before=EVERYWHERE)
    assert status.phase is Phase.SUCCEEDED
    assert status.artifacts is not None
    assert [one.address for one in status.artifacts.published][::2] == [
        one["address"] for one in EVERYWHERE["publish"]["destinations"]
    ]


async def test_rules_look_at_what_the_pod_is_going_to_be_given(server: ApiServer, operator: Operator) -> None:
    """Not at what the spec says by then: nobody gets a forbidden Secret by naming an allowed one a moment later."""
    status = walk(ONE, EVALUATE)
    status = commit(see(status, spec=ONE, job=make_job(status, complete=True), pods=(succeeded(EVALUATE),)))
    assert stage(status).newest is not None
    harmless = {"publish": {"destinations": [{"address": "s3://models/llava"}]}}
    server.put_run(**harmless)["status"] = dump_status(status)
    operator.policy = replace(Policy(), secret_names=("other",))
    operator.new_process()
    await operator.settle()
    held = stage(server.status)
    assert held.reason == Reason.NOT_ALLOWED
    assert "spec.publish.destinations.secretRef.name is bucket" in held.message
    assert (JOBS, "invoices-publish-1") not in server.objects
    # And what it says that it takes is what it takes.
    assert held.message.startswith(
        "waits; once spec.publish is corrected, set spec.suspend to true and back to false: spec.publish."
    )
    raw = server.objects[RUNS, KEY.name]
    raw["spec"]["publish"]["destinations"][0]["secretRef"] = {"name": "other"}
    for suspend in (True, False):
        raw["spec"]["suspend"] = suspend
        await operator.settle()
    assert stage(server.status).reason == ""
    assert (JOBS, "invoices-publish-2") in server.objects


# --- what its result comes to


def test_the_status_tells_what_stands_where() -> None:
    status = end_with(published(*CONTENTS), EVERYWHERE)
    assert status.artifacts is not None
    found = [one.model_dump(by_alias=False) for one in status.artifacts.published]
    assert len(found) == 8
    assert found[3] == {
        "address": "hf://team/invoices@v1", "what": "adapter", "revision": "r1", "digest": DIGEST, "size_bytes": 2**31,
    }  # fmt: skip
    assert stage(status).message.startswith(
        "published to s3://models/llava (merged, 1.0Gi sent), s3://models/llava (adapter, 1.0Gi sent), hf://team"
    )
    assert [one.note for one in list_transitions(status) if one.reason == "Published"] == [stage(status).message]
    # What other stages have left is still there.
    assert status.artifacts.digests == {"adapter": "a", "merged": "b", "report": "c"}
    assert status.artifacts.merged == "merged"


def test_that_nothing_had_to_be_sent_is_told() -> None:
    status = end_with(published((0, "merged"), sent=0), ONE)
    assert stage(status).message == "published to s3://models/llava (merged, nothing had to be sent)"


@pytest.mark.parametrize(
    "told",
    [
        published(),
        published((1, "merged")),
        published((0, "adapter")),
        published((0, "merged"), (0, "merged")),
        published((0, "merged"), (1, "merged")),
        published((0, "merged"), (0, "adapter")),
    ],
    ids=["nothing", "another destination", "another content", "twice", "one more destination", "one more content"],
)
def test_a_result_that_is_not_what_was_to_be_published_is_none(told: StageResult) -> None:
    status = end_with(told, ONE)
    assert status.failure is not None
    assert (status.failure.reason, status.failure.stage) == (Reason.INTERNAL_ERROR, PUBLISH)
    assert "its result makes no sense (1 contents were to be published to 1 destinations, but" in status.failure.message
    assert status.artifacts is not None
    assert status.artifacts.published == ()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (StageResult(stage=PUBLISH, attempt=1), "it does not say what was published"),
        (
            published((0, "merged")).model_copy(update={"digests": {f"d{n}": "" for n in range(33)}}),
            "at most 32 items",
        ),
        (published((0, "merged")).model_copy(update={"digests": {"d": "x" * 300}}), "at most 256 characters"),
    ],
    ids=["no numbers", "too many digests", "a digest too long"],
)
def test_a_result_that_no_status_can_hold_fails_the_run(told: StageResult, said: str) -> None:
    """An image of the run's author can say anything. What the API server would refuse would never be written."""
    status = end_with(told, ONE)
    assert status.failure is not None
    assert (status.failure.reason, status.failure.stage) == (Reason.INTERNAL_ERROR, PUBLISH)
    assert said in status.failure.message
    assert parse_status({"status": dump_status(status)}) == status


def test_what_another_stage_says_of_publishing_counts_for_nothing() -> None:
    told = result().model_copy(update={"publish": published((0, "merged")).publish})
    status = evaluated(ONE, told)
    assert stage(status).state is StageState.RUNNING
    assert status.artifacts is not None
    assert status.artifacts.published == ()


def test_a_result_of_an_attempt_that_had_nothing_to_publish_is_none() -> None:
    """Somebody has written into the status."""
    status = walk(ONE, PUBLISH)
    settings = {"settings": stage(status).attempts[0].settings.model_copy(update={"publish": None})}
    attempts = (stage(status).attempts[0].model_copy(update=settings),)
    stages = (*status.stages[:-1], stage(status).model_copy(update={"attempts": attempts}))
    status = status.model_copy(update={"stages": stages})
    pods = (succeeded(PUBLISH),)
    status = commit(see(status, spec=ONE, job=make_job(status, complete=True), pods=pods))
    assert status.failure is not None
    assert "nothing was to be published" in status.failure.message


@pytest.mark.parametrize("digest", ["", "x" * 64, f"sha256:{'D' * 64}", f"sha256:{'d' * 64}\n", "\x1b[2J"])
def test_a_digest_is_one(digest: str) -> None:
    text = published((0, "merged")).to_termination_message().replace(json.dumps(DIGEST), json.dumps(digest))
    status = walk(ONE, PUBLISH)
    status = commit(see(status, spec=ONE, job=make_job(status, complete=True), pods=(succeeded(PUBLISH, text),)))
    assert status.failure is not None
    assert "publish.published.0.digest" in status.failure.message


# --- the volume


@pytest.mark.parametrize("outcome", [PASSED, FAILED])
async def test_the_volume_is_kept_before_the_run_has_succeeded(
    server: ApiServer, operator: Operator, outcome: GateOutcome
) -> None:
    """Also where nothing is published: then it has the only copy."""
    spec = {**ONE, "evaluation": {"workers": {"gpus": 0}, "gate": {}}, "storage": {"retain": "OnSuccess"}}
    status = walk(spec, EVALUATE)
    server.put_run(**spec)["status"] = dump_status(status)
    owner = {"kind": "LlavaFineTune", "uid": "run-uid", "controller": True}
    claim = {"metadata": {"name": "invoices-run", "uid": "c", "resourceVersion": "1", "ownerReferences": [owner],
                          "labels": {"finetune.llava.dev/run-uid": "run-uid"}}}  # fmt: skip
    server.objects[VOLUME_CLAIMS, "invoices-run"] = claim
    job = make_job(status, complete=True)
    pods = (succeeded(EVALUATE, result(judge(outcome)).to_termination_message()),)
    seen = replace(see(status, spec=spec, job=job, pods=pods))
    decision = decide(seen)
    if outcome is PASSED:
        assert type(decision).__name__ == "Commit"
        return
    assert type(decision).__name__ == "KeepVolume", "Succeeded is written when that is done"
    status = commit(replace(seen, is_volume_kept=True))
    assert (status.phase, stage(status).state) == (Phase.SUCCEEDED, StageState.SKIPPED)


# --- what its pod is given


def pod_of(spec: dict[str, Any], platform: Platform = PLATFORM) -> dict[str, Any]:
    pod: dict[str, Any] = build_job(make_attempt(make_run(**spec), PUBLISH), platform)["spec"]["template"]["spec"]
    return pod


def known_keys(role: str, secret: str, *keys: str) -> dict[str, Any]:
    items = [{"key": key, "path": f"known~keys/{key}"} for key in keys]
    sources = [{"secret": {"name": secret}}, {"secret": {"name": secret, "items": items, "optional": True}}]
    return {"name": f"secret-{role}", "projected": {"defaultMode": 0o440, "sources": sources}}


PLAIN = {"config", "report-ca", "report-token", "run", "tmp", "shm"}


def test_its_pod_gets_what_destinations_need_and_nothing_of_the_sources() -> None:
    pod = pod_of(EVERYWHERE)
    assert [volume for volume in pod["volumes"] if volume["name"] not in PLAIN] == [
        known_keys("publish-0", "bucket", "accessKeyId", "secretAccessKey", "sessionToken", "endpoint", "region"),
        known_keys("publish-1", "hub", "token"),
        known_keys("signing", "key", "privateKey"),
        known_keys("download", "proxies", "httpProxy", "httpsProxy"),
        {"name": "download-ca", "configMap": {"name": "corporate", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"name": "destination-0", "persistentVolumeClaim": {"claimName": "models"}},
    ]
    [container] = pod["containers"]
    assert [mount for mount in container["volumeMounts"] if mount["name"] not in PLAIN] == [
        {"name": "secret-publish-0", "mountPath": "/llava/secrets/publish-0", "readOnly": True,
         "subPath": "known~keys"},
        {"name": "secret-publish-1", "mountPath": "/llava/secrets/publish-1", "readOnly": True,
         "subPath": "known~keys"},
        {"name": "secret-signing", "mountPath": "/llava/secrets/signing", "readOnly": True, "subPath": "known~keys"},
        {"name": "secret-download", "mountPath": "/llava/secrets/download", "readOnly": True, "subPath": "known~keys"},
        {"name": "download-ca", "mountPath": "/etc/llava-download", "readOnly": True},
        {"name": "destination-0", "mountPath": "/llava/destinations/models"},
    ]  # fmt: skip
    assert container["command"][:2] == ["llava-trainer", "publish"]
    assert (pod["terminationGracePeriodSeconds"], "nodeSelector" in pod) == (30, False)
    assert build_resources(make_attempt(make_run(**EVERYWHERE), PUBLISH)) == {
        "requests": {"cpu": "1", "memory": "3Gi"}, "limits": {"memory": "3Gi"},
    }  # fmt: skip


def test_no_other_stage_gets_any_of_it() -> None:
    of_publishing = {"secret-publish-0", "secret-publish-1", "secret-signing", "destination-0"}
    for name in StageName:
        attempt = make_attempt(make_run(**EVERYWHERE), name)
        volumes = {volume["name"] for volume in build_job(attempt, PLATFORM)["spec"]["template"]["spec"]["volumes"]}
        assert (of_publishing & volumes) == (of_publishing if name is PUBLISH else set()), name


def test_a_key_that_signs_is_there_where_nothing_is_reached_over_the_network() -> None:
    spec = {"publish": {"destinations": [{"address": "pvc://models/a"}], "signing": {"name": "key"}},
            "download": EVERYWHERE["download"]}  # fmt: skip
    names = [volume["name"] for volume in pod_of(spec)["volumes"] if volume["name"] not in PLAIN]
    assert names == ["secret-signing", "destination-0"], "no proxy, and no authority"
    config = build_run_config(make_attempt(make_run(**spec), PUBLISH), PLATFORM)
    assert config.download.https_proxy is None


@pytest.mark.parametrize(
    ("storage", "own"), [({}, "invoices-run"), ({"existingClaim": "models"}, "models")]
)  # fmt: skip
def test_a_claim_is_one_volume_however_often_it_is_named(storage: dict[str, Any], own: str) -> None:
    addresses = ["pvc://models/a", "pvc://models/b", "pvc://invoices-run/c", "pvc://archive/d"]
    spec = {"publish": {"destinations": [{"address": one} for one in addresses]}, "storage": storage}
    pod = pod_of(spec)
    claims = [one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
    assert sorted(claims) == ["archive", "invoices-run", "models"]
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    for claim in ("models", "invoices-run", "archive"):
        mount = mounts[f"/llava/destinations/{claim}"]
        assert (mount["name"] == "run") is (claim == own)
        assert not mount.get("readOnly")


def test_it_is_told_where_to_and_which_image_it_is_and_no_other_stage_but_the_report() -> None:
    """An image that does not know these fields would refuse every stage's configuration."""
    run = make_run(**EVERYWHERE)
    for name in StageName:
        attempt = make_attempt(run, name, config_version=2)
        written = json.loads(build_config_map(attempt, PLATFORM)["data"][CONFIG_KEY])
        assert ("publish" in written) is (name in (PUBLISH, EVALUATE)), name
        assert ("image" in written) is (name is PUBLISH), name
    pinned = f"registry/trainer@{DIGEST}"
    config = build_run_config(make_attempt(run, PUBLISH, image=pinned), PLATFORM)
    assert config.image == pinned
    assert config.publish == run.spec.publish
    assert config.download.https_proxy == "http://proxy:3128"
    assert build_run_config(make_attempt(run, PUBLISH), PLATFORM).image == "registry/trainer:1"


def test_the_report_is_told_where_the_model_will_be_served_from() -> None:
    run = make_run(walk(EVERYWHERE, EVALUATE), **EVERYWHERE)
    config = build_run_config(make_attempt(run, EVALUATE, config_version=2), PLATFORM)
    destinations = EVERYWHERE["publish"]["destinations"]
    places = [served.place for served in list_served(RunConfig.model_validate_json(config.model_dump_json()))]
    assert places[:-1] == [f"{one['address']}, once it is published" for one in destinations]
    assert config.download == Download(), "it goes nowhere"


def test_whoever_has_to_make_what_is_missing_is_told_the_field() -> None:
    run = make_run(**EVERYWHERE)
    named = {(one.kind, one.name, one.field) for one in list_references(run)}
    assert {
        ("Secret", "bucket", "spec.publish.destinations[0].secretRef"),
        ("Secret", "hub", "spec.publish.destinations[1].secretRef"),
        ("PersistentVolumeClaim", "models", "spec.publish.destinations[3].address"),
        ("Secret", "key", "spec.publish.signing"),
    } <= named
    assert list_claims(make_attempt(run, PUBLISH)) == ["models", "invoices-run"]
    assert list_claims(make_attempt(make_run(**ONE), PUBLISH)) == ["invoices-run"], "nothing that others read"
    elsewhere = {"publish": {"destinations": [{"address": "pvc://archive/a"}]}}
    read = list_claims(make_attempt(make_run(**elsewhere), StageName.TRAIN))
    assert read == ["models", "data", "invoices-run"], "a claim that only publishing uses may have no volume yet"
    needs = {name: list_needs(run.spec, STAGE_TABLE[name]) for name in (StageName.PREPARE, StageName.MERGE, PUBLISH)}
    assert needs == {
        StageName.PREPARE: ["Secret proxies", "ConfigMap corporate"],
        StageName.MERGE: [],
        PUBLISH: ["Secret proxies", "Secret bucket", "Secret hub", "Secret key", "ConfigMap corporate"],
    }


def test_the_attempt_is_frozen_in_the_status_and_read_back() -> None:
    status = parse_status({"status": dump_status(walk(EVERYWHERE, PUBLISH))})
    newest = stage(status).newest
    assert newest is not None
    assert newest.settings.publish == make_spec(**EVERYWHERE).publish
    assert all(one.newest is None or one.newest.settings.publish is None for one in status.stages[:-1])


async def test_its_children_are_made_whole(server: ApiServer, operator: Operator) -> None:
    status = walk(EVERYWHERE, EVALUATE)
    status = commit(see(status, spec=EVERYWHERE, job=make_job(status, complete=True), pods=(succeeded(EVALUATE),)))
    server.put_run(**EVERYWHERE)["status"] = dump_status(status)
    await operator.settle()
    assert (JOBS, "invoices-publish-1") in server.objects
    told = json.loads(server.objects[CONFIG_MAPS, "invoices-publish-1"]["data"][CONFIG_KEY])
    assert told["publish"]["destinations"][0]["address"] == "s3://models/llava"
    [attempt] = server.objects[RUNS, KEY.name]["status"]["stages"][-1]["attempts"]
    assert attempt["settings"]["publish"]["what"] == "both"
