"""Messages against an API server in memory: one Job each, whatever stands in its way, and what is made of its end."""

import json
from datetime import timedelta
from typing import Any

import pytest

from llava_api.constants import LABEL_NOTIFICATION, LABEL_RUN, LABEL_STAGE, Phase, StageName
from llava_api.delivery import EXIT_REFUSED, Delivery
from llava_api.status import GateStatus, NotificationState
from llava_operator.acting.notifying import LAST_RETRY_S
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.notifications import GIVEN_UP_AFTER
from llava_operator.deciding.policy import Policy
from llava_operator.deciding.status import dump_status
from llava_operator.kube.errors import ForbiddenError, InvalidError, KubeError, RetryableError
from llava_operator.kube.kinds import EVENTS, JOBS, PODS, RUNS
from llava_operator.kube.objects import Object
from llava_operator.run import parse_run
from tests.controller.in_memory import ApiServer, Operator
from tests.controller.makers import KEY, RUN_UID, make_spec
from tests.controller.test_notifications import run_through, told


@pytest.fixture
def server() -> ApiServer:
    """A run that has just succeeded, and owes a message."""
    made = ApiServer()
    spec = told()
    made.put_run(**spec)["status"] = dump_status(run_through(spec))
    return made


def jobs(server: ApiServer) -> list[Object]:
    return [raw for (kind, _), raw in server.objects.items() if kind == JOBS]


def the_job(server: ApiServer) -> Object:
    [job] = jobs(server)
    return job


def end(server: ApiServer, operator: Operator, condition: str, reason: str = "") -> None:
    """The Job ends, and its event comes."""
    job = the_job(server)
    said = {"type": condition, "status": "True", "reason": reason, "message": "its words"}
    job["status"] = {"conditions": [{**said, "lastTransitionTime": "2026-11-01T12:00:00Z"}]}
    operator.runs.note(server.objects[RUNS, KEY.name])
    assert operator.children.note_job(job) == KEY


def put_pod(server: ApiServer, name: str, message: str, *, at: str, job_uid: str | None = None) -> None:
    uid = job_uid or the_job(server)["metadata"]["uid"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": uid, "controller": True}
    terminated = {"exitCode": EXIT_REFUSED, "message": message, "finishedAt": at}
    server.objects[PODS, name] = {
        "metadata": {"namespace": KEY.namespace, "name": name, "uid": name, "ownerReferences": [owner]},
        "status": {
            "phase": "Failed", "containerStatuses": [{"name": "notifier", "state": {"terminated": terminated}}],
        },
    }  # fmt: skip


async def test_one_job_is_made_however_often_it_is_looked_at(server: ApiServer, operator: Operator) -> None:
    await operator.settle()
    job = the_job(server)
    assert job["metadata"]["labels"][LABEL_NOTIFICATION] == "team"
    assert LABEL_STAGE not in job["metadata"]["labels"]
    for _ in range(3):
        operator.now += timedelta(minutes=5)
        await operator.settle()
    operator.new_process()
    operator.now += timedelta(minutes=5)
    await operator.settle()
    assert [write for write in server.writes if "jobs" in write] == [f"create jobs {job['metadata']['name']}"]
    assert server.status.notifications[0].state is NotificationState.PENDING


async def test_its_delivery_is_written_and_counted_once(server: ApiServer, operator: Operator) -> None:
    await operator.settle()
    end(server, operator, "Complete")
    operator.now += timedelta(minutes=1)
    await operator.settle()
    operator.new_process()
    await operator.settle()
    assert server.status.notifications[0].state is NotificationState.DELIVERED
    assert operator.counted == [("Succeeded", "delivered")]
    assert len(jobs(server)) == 1
    assert sum(write.startswith("patch") for write in server.writes) == 1


async def test_why_it_failed_is_what_its_last_pod_has_said(server: ApiServer, operator: Operator) -> None:
    await operator.settle()
    put_pod(server, "early", "https://h.example answers 500", at="2026-11-01T12:00:01Z")
    put_pod(server, "late", "https://h.example/x?token=hidden answers 404\x1b[2J", at="2026-11-01T12:00:02Z")
    put_pod(server, "stranger", "all is well", at="2026-11-01T12:00:03Z", job_uid="another")
    server.objects[PODS, "odd"] = {"metadata": {"name": "odd"}, "status": []}
    end(server, operator, "Failed", "PodFailurePolicy")
    operator.now += timedelta(minutes=1)
    await operator.settle()
    [one] = server.status.notifications
    assert (one.state, one.outcome) == ("Undelivered", "https://h.example/x?… answers 404\\x1b[2J")
    assert operator.counted == [("Succeeded", "undelivered")]
    [event] = [raw for (kind, _), raw in server.objects.items() if kind == EVENTS and "Undelivered" in raw["reason"]]
    assert event["note"].startswith("team was not told of Succeeded: https://h.example")


@pytest.mark.parametrize("refusal", [None, RetryableError("down")])
async def test_a_job_whose_pods_are_gone_says_itself_why(
    server: ApiServer, operator: Operator, refusal: KubeError | None
) -> None:
    await operator.settle()
    if refusal is not None:
        server.refuse_list[PODS] = refusal
    end(server, operator, "Failed", "DeadlineExceeded")
    operator.now += timedelta(minutes=1)
    await operator.settle()
    assert server.status.notifications[0].outcome == "DeadlineExceeded: its words"


async def test_what_is_refused_for_now_is_tried_later_and_later_and_then_given_up(
    server: ApiServer, operator: Operator
) -> None:
    server.refuse[JOBS] = ForbiddenError("exceeded quota: pods", status=403)
    waits = []
    for _ in range(8):
        waits.append(await operator.settle() or 0.0)
        operator.now += timedelta(seconds=waits[-1])
    assert waits == [1, 2, 4, 8, 16, 32, LAST_RETRY_S, LAST_RETRY_S]
    [one] = server.status.notifications
    assert one.outcome == "exceeded quota: pods"
    # Its reason was written once, and its end is.
    patches = [write for write in server.writes if write.startswith("patch")]
    assert len(patches) == 1
    assert one.first_try_time is not None
    operator.now = from_time(one.first_try_time) + GIVEN_UP_AFTER
    await operator.settle()
    assert server.status.notifications[0].outcome == "given up after 8 h: exceeded quota: pods"
    assert operator.counted == [("Succeeded", "undelivered")]
    assert await operator.settle() is None


def come_back(server: ApiServer, operator: Operator) -> None:
    """Another process, after all of the operator has been away for days."""
    operator.new_process()
    operator.now += timedelta(days=2)
    server.made_at = to_time(operator.now)


async def test_an_operator_that_was_away_for_days_sends_what_is_owed(server: ApiServer, operator: Operator) -> None:
    come_back(server, operator)
    await operator.settle()
    operator.now += timedelta(minutes=1)
    await operator.settle()
    end(server, operator, "Complete")
    await operator.settle()
    assert server.status.notifications[0].state is NotificationState.DELIVERED


@pytest.mark.parametrize("is_refused", [True, False])
async def test_one_that_was_refused_before_that_is_tried_once_more(
    server: ApiServer, operator: Operator, is_refused: bool
) -> None:
    server.refuse[JOBS] = ForbiddenError("exceeded quota: pods", status=403)
    await operator.settle()
    operator.now += timedelta(seconds=1)
    await operator.settle()
    if not is_refused:
        del server.refuse[JOBS]
    come_back(server, operator)
    await operator.settle()
    assert server.status.notifications[0].state is NotificationState.PENDING
    operator.now += timedelta(seconds=1)
    await operator.settle()
    assert (server.status.notifications[0].state is NotificationState.UNDELIVERED) is is_refused
    assert len(jobs(server)) == (not is_refused)


async def test_a_clock_that_is_set_back_holds_no_message_up(server: ApiServer, operator: Operator) -> None:
    server.refuse[JOBS] = ForbiddenError("exceeded quota: pods", status=403)
    await operator.settle()
    del server.refuse[JOBS]
    operator.now -= timedelta(days=1)
    await operator.settle()
    assert len(jobs(server)) == 1


async def test_of_messages_that_are_settled_nothing_is_kept(server: ApiServer, operator: Operator) -> None:
    """A run that goes on may owe one after the other for weeks."""
    running = run_through(told(), StageName.TRAIN)
    status = dump_status(running.model_copy(update={"notifications": server.status.notifications}))
    server.objects[RUNS, KEY.name] |= {"status": status, "spec": make_spec(**told("Succeeded")).model_dump(mode="json")}
    await operator.settle()
    job = next(job for job in jobs(server) if LABEL_NOTIFICATION in job["metadata"]["labels"])
    job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    operator.children.note_job(job)
    for _ in range(3):
        operator.now += timedelta(minutes=1)
        await operator.settle()
    assert server.status.notifications[0].state is NotificationState.DELIVERED
    assert server.status.phase is Phase.RUNNING
    assert operator.reconciler.notifier._tries == {}


async def test_a_refusal_that_passes_is_told_after_all(server: ApiServer, operator: Operator) -> None:
    server.refuse[JOBS] = ForbiddenError("denied by a policy", status=403)
    await operator.settle()
    del server.refuse[JOBS]
    operator.now += timedelta(seconds=2)
    await operator.settle()
    end(server, operator, "Complete")
    operator.now += timedelta(minutes=1)
    await operator.settle()
    [one] = server.status.notifications
    assert (one.state, one.outcome) == ("Delivered", "")


async def test_an_api_server_that_is_away_ends_no_pass(server: ApiServer, operator: Operator) -> None:
    server.refuse[JOBS] = RetryableError("down")
    assert await operator.settle() == 1.0


async def test_what_will_never_be_taken_is_given_up_at_once(server: ApiServer, operator: Operator) -> None:
    server.refuse[JOBS] = InvalidError("spec.template: Invalid value")
    await operator.settle()
    operator.now += timedelta(minutes=1)
    await operator.settle()
    assert server.status.notifications[0].outcome == "spec.template: Invalid value"


async def test_a_name_that_is_taken_is_nobodys_word(server: ApiServer, operator: Operator) -> None:
    await operator.settle()
    the_job(server)["metadata"]["ownerReferences"] = []
    operator.new_process()
    operator.now += timedelta(minutes=1)
    await operator.settle()
    operator.now += timedelta(minutes=1)
    await operator.settle()
    [one] = server.status.notifications
    assert one.state is NotificationState.UNDELIVERED
    assert "does not belong to this run" in one.outcome


async def test_a_job_that_somebody_deletes_is_made_again_but_not_in_a_loop(
    server: ApiServer, operator: Operator
) -> None:
    await operator.settle()
    for _ in range(3):
        job = the_job(server)
        del server.objects[JOBS, job["metadata"]["name"]]
        operator.children.note_job(job, deleted=True)
        delay_s = await operator.settle()
        assert jobs(server) == []
        assert delay_s is not None
        operator.now += timedelta(seconds=delay_s)
        await operator.settle()
        assert len(jobs(server)) == 1
        assert server.status.notifications[0].outcome == "its Job was deleted before it had ended"
    # Nor for ever.
    job = the_job(server)
    del server.objects[JOBS, job["metadata"]["name"]]
    operator.children.note_job(job, deleted=True)
    operator.now += GIVEN_UP_AFTER
    await operator.settle()
    [one] = server.status.notifications
    assert one.outcome == "given up after 8 h: its Job was deleted before it had ended"
    assert jobs(server) == []


async def test_without_an_image_nothing_is_sent(server: ApiServer, operator: Operator) -> None:
    operator.notifier_image = ""
    operator.new_process()
    await operator.settle()
    operator.now += timedelta(minutes=1)
    await operator.settle()
    assert "names no image" in server.status.notifications[0].outcome
    assert jobs(server) == []


async def test_a_rule_that_came_later_stops_the_message_and_not_the_run(server: ApiServer, operator: Operator) -> None:
    operator.policy = Policy(notification_hosts=("other.example",))
    operator.new_process()
    await operator.settle()
    operator.now += timedelta(minutes=1)
    await operator.settle()
    [one] = server.status.notifications
    assert one.outcome.startswith("not allowed: spec.notifications.webhook.url is at https://h.example, but this ")
    assert server.status.phase is Phase.SUCCEEDED
    assert jobs(server) == []


@pytest.mark.parametrize(
    ("spec", "policy", "field"),
    [
        ({"download": {"caConfigMap": "own"}}, Policy(ca_config_maps=("corp",)), "spec.download.caConfigMap"),
        ({"download": {"secretRef": {"name": "own"}}}, Policy(secret_names=("corp",)), "spec.download.secretRef.name"),
        ({"imagePullSecrets": [{"name": "own"}]}, Policy(secret_names=("corp",)), "spec.imagePullSecrets"),
        ({"scheduling": {"tolerations": [{"operator": "Exists"}]}}, Policy(tolerations=False), "spec.scheduling"),
    ],
)
async def test_a_refused_run_gets_nothing_with_its_message_either(
    server: ApiServer, operator: Operator, spec: dict[str, Any], policy: Policy, field: str
) -> None:
    server.objects[RUNS, KEY.name]["spec"].update(spec)
    operator.policy = policy
    operator.new_process()
    await operator.settle()
    operator.now += timedelta(minutes=1)
    await operator.settle()
    [one] = server.status.notifications
    assert one.outcome.startswith(f"not allowed: {field}")
    assert jobs(server) == []


@pytest.mark.parametrize(
    ("download", "is_own"),
    [({}, False), ({"httpsProxy": "http://own:1"}, False), ({"httpProxy": "http://own:1"}, True),
     ({"secretRef": {"name": "own"}}, True)],
)  # fmt: skip
async def test_the_pod_is_told_whose_proxy_it_goes_by(
    server: ApiServer, operator: Operator, download: dict[str, Any], is_own: bool
) -> None:
    server.objects[RUNS, KEY.name]["spec"]["download"] = download
    await operator.settle()
    handed = the_job(server)["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"]
    assert Delivery.model_validate_json(handed).is_proxy_own is is_own


async def test_what_somebody_else_has_written_into_the_status_ends_no_pass(
    server: ApiServer, operator: Operator
) -> None:
    server.objects[RUNS, KEY.name]["status"]["notifications"][0]["event"] = "Foo"
    await operator.settle()
    operator.now += timedelta(minutes=1)
    await operator.settle()
    [one] = server.status.notifications
    assert one.outcome == "status.notifications holds what no operator has written"


async def test_a_run_that_asks_for_what_is_not_allowed_from_the_start_is_refused() -> None:
    server = ApiServer()
    server.put_run(**told())
    operator = Operator(server)
    operator.policy = Policy(notification_hosts=())
    operator.new_process()
    await operator.settle()
    assert server.status.failure is not None
    assert server.status.failure.reason == "NotAllowed"
    assert "sends notifications to no host" in server.status.failure.message


async def test_one_that_was_changed_while_it_runs_holds_nothing_up() -> None:
    server = ApiServer()
    server.put_run()
    operator = Operator(server)
    operator.policy = Policy(notification_hosts=())
    operator.new_process()
    await operator.settle()
    assert server.status.stages[0].attempts[0].job_uid is not None
    server.objects[RUNS, KEY.name]["spec"].update(told())
    job = the_job(server)
    del server.objects[JOBS, job["metadata"]["name"]]
    operator.children.note_job(job, deleted=True)
    await operator.settle()
    operator.now += timedelta(minutes=1)
    await operator.settle()
    assert [job["metadata"]["name"] for job in jobs(server)] == ["invoices-prepare-2"]


async def test_a_restart_finds_what_finished_runs_owe(server: ApiServer, operator: Operator) -> None:
    assert await operator.runs.relist(server, None) == {KEY}  # type: ignore[arg-type]
    await operator.settle()
    end(server, operator, "Complete")
    operator.now += timedelta(minutes=1)
    await operator.settle()
    operator.new_process()
    assert await operator.runs.relist(server, None) == set()  # type: ignore[arg-type]


async def test_the_job_is_small_restricted_and_alone(server: ApiServer, operator: Operator) -> None:
    """Compared whole: what is not here is not in it."""
    server.objects[RUNS, KEY.name]["spec"]["notifications"][0]["webhook"]["secretRef"] = {"name": "llava-hooks"}
    server.objects[RUNS, KEY.name]["spec"]["download"] = {"noProxy": ".svc"}
    # The kubelet would put a variable's value there.
    server.objects[RUNS, KEY.name]["status"]["notifications"][0]["message"] = "costs $(LLAVA_DELIVERY)"
    await operator.settle()
    job = the_job(server)
    [container] = job["spec"]["template"]["spec"].pop("containers")
    [handed] = container.pop("env")
    assert "$" not in handed["value"]
    delivery = Delivery.model_validate_json(handed["value"])
    assert json.loads(delivery.body)["data"]["message"] == "costs $(LLAVA_DELIVERY)"
    assert (delivery.url, delivery.is_signed, delivery.no_proxy) == ("https://h.example", True, ".svc")
    assert (delivery.allowed_hosts, delivery.insecure) == (("*",), False)
    lost = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
        for key in ("not-ready", "unreachable")
    ]
    assert container == {
        "name": "notifier", "image": "operator", "imagePullPolicy": "IfNotPresent", "command": ["llava-notifier"],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "notification", "mountPath": "/llava/notification", "readOnly": True}],
    }  # fmt: skip
    secrets = [
        {"secret": {"name": "llava-hooks", "items": [{"key": "signingKey", "path": "signingKey"}]}},
        {"secret": {"name": "llava-hooks", "items": [{"key": "bearer", "path": "bearer"}], "optional": True}},
    ]
    pod = job["spec"].pop("template")
    assert pod == {
        "metadata": {"labels": {LABEL_RUN: KEY.name, LABEL_NOTIFICATION: "team"}},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "tolerations": lost,
            "automountServiceAccountToken": False, "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumes": [{"name": "notification", "projected": {"defaultMode": 0o440, "sources": secrets}}],
        },
    }  # fmt: skip
    assert job["metadata"]["ownerReferences"][0]["uid"] == RUN_UID
    assert job["spec"] == {
        "backoffLimit": 4, "activeDeadlineSeconds": 7200, "ttlSecondsAfterFinished": 86400,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "notifier", "operator": "In", "values": [EXIT_REFUSED]},
                },
            ]
        },
    }  # fmt: skip


def mounted(server: ApiServer) -> list[Any]:
    return list(the_job(server)["spec"]["template"]["spec"]["volumes"])


async def test_of_a_secret_the_keys_that_have_to_be_there_are_waited_for(server: ApiServer, operator: Operator) -> None:
    spec = server.objects[RUNS, KEY.name]["spec"]
    spec["notifications"][0] = {"name": "team", "slack": {"secretRef": {"name": "s"}}}
    spec["download"] = {"caConfigMap": "corporate", "secretRef": {"name": "proxies"}}
    await operator.settle()
    slack, proxies, authorities = mounted(server)
    assert slack["projected"]["sources"] == [{"secret": {"name": "s", "items": [{"key": "url", "path": "url"}]}}]
    assert proxies["name"] == "secret-download"
    assert authorities["configMap"]["name"] == "corporate"
    handed = the_job(server)["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"]
    delivery = Delivery.model_validate_json(handed)
    assert (delivery.kind, delivery.url, delivery.is_signed) == ("slack", None, False)


async def test_the_longest_message_fits_into_a_job(server: ApiServer, operator: Operator) -> None:
    """The kernel takes 128 KiB for one variable."""
    run = server.objects[RUNS, KEY.name]
    status = parse_run(run).status
    assert status.evaluation is not None
    metric = status.evaluation.metrics[0].model_copy(update={"name": "ü" * 256, "split": "ü" * 256})
    gate = GateStatus(outcome="Failed", metric="ü" * 256, gain=-1, low=-1, high=1, limit=0, samples=2**53, groups=9)
    evaluation = status.evaluation.model_copy(update={"metrics": (metric,) * 16, "gate": gate, "retention": gate})
    artifacts = dict.fromkeys(("adapter", "weights", "merged", "projector", "report", "dataset_report"), "ü" * 4096)
    assert status.artifacts is not None
    update = {"evaluation": evaluation, "artifacts": status.artifacts.model_copy(update=artifacts)}
    run["status"] = dump_status(status.model_copy(update=update))
    await operator.settle()
    handed = the_job(server)["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"]
    assert len(handed.encode()) < 128 * 1024
