"""What no child of a run asks for, whatever its spec says: docs/security.md rests on these."""

from collections.abc import Iterator
from typing import Any

import pytest

from llava_api.constants import STAGES, TRAINING_STAGES, StageName
from llava_api.spec import Download, SecretRef
from llava_api.status import NotificationStatus
from llava_operator.build.common import Platform
from llava_operator.build.config import build_config_map, build_report_ca
from llava_operator.build.job import build_job
from llava_operator.build.notification import build_notification_job
from llava_operator.build.service import build_rendezvous_service
from llava_operator.build.volume import build_volume_claim
from llava_operator.kube.objects import Object
from llava_operator.run import Run
from tests.controller.makers import KEY, NOW_TEXT, make_attempt, make_run

PLATFORM = Platform(
    trainer_image="t", report_url="https://r/", download=Download(ca_config_map="c", secret_ref=SecretRef(name="s")),
    notifier_image="o",
)  # fmt: skip
DEMANDING: dict[str, Any] = {
    "model": {"languageModel": "pvc://vicuna/7b", "visionTower": "hf://a/b", "projector": "https://h/p.bin",
              "secretRef": {"name": "hub"}},
    "dataset": {"source": "s3://invoices/set", "format": "llava", "file": "t.json", "secretRef": {"name": "s3"}},
    "alignment": {"dataset": {"source": "pvc://vicuna/captions", "format": "llava", "file": "c.json"},
                  "batch": {"perDevice": 1, "global": 16}},
    "training": {"batch": {"perDevice": 1, "global": 16},
                 "tracking": {"tensorboard": {}, "mlflow": {"url": "https://m.example", "experiment": "e",
                                                            "secretRef": {"name": "mlflow"}},
                              "wandb": {"project": "p", "secretRef": {"name": "wandb"}}}},
    "workers": {"replicas": 2, "gpus": 8, "network": {"interface": "eth0", "hca": "mlx5", "resource": "rdma/hca"}},
    "evaluation": {"gpus": 1},
    "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}],
                   "serviceAccountName": "default", "topologySpread": [{"topologyKey": "kubernetes.io/hostname"}]},
    "download": {"caConfigMap": "corporate", "secretRef": {"name": "proxies"}},
    "publish": {"destinations": [{"address": "s3://models/llava", "secretRef": {"name": "bucket"}},
                                 {"address": "hf://a/b", "secretRef": {"name": "hub-write"}},
                                 {"address": "oci://r.example/a:1", "secretRef": {"name": "oci"}},
                                 {"address": "pvc://models/llava"}],
                "what": "both", "signing": {"name": "key"}},
    "image": {"reference": "evil.example/x"},
    "imagePullSecrets": [{"name": "registry"}],
    "notifications": [
        {"name": "hook", "webhook": {"url": "https://h", "secretRef": {"name": "hooks"}}},
        {"name": "hidden", "webhook": {"secretRef": {"name": "hooks"}}},
        {"name": "slack", "slack": {"secretRef": {"name": "slack"}}},
    ],
}  # fmt: skip
"""Everything that a spec can ask for."""
SPECS = {"plain": {}, "demanding": DEMANDING}


@pytest.fixture(params=SPECS)
def run(request: pytest.FixtureRequest) -> Run:
    return make_run(**SPECS[request.param])


def pods(run: Run) -> dict[StageName, Object]:
    return {stage: build_job(make_attempt(run, stage, 1), PLATFORM)["spec"]["template"]["spec"] for stage in STAGES}


def notifications(run: Run) -> dict[str, Object]:
    """Jobs that tell every receiver of something, by the receiver."""
    told = {one.name: NotificationStatus(name=one.name, id="i", event="Failed", time=NOW_TEXT) for one in
            run.spec.notifications}  # fmt: skip
    return {one.name: build_notification_job(run, one, told[one.name], PLATFORM) for one in run.spec.notifications}


def children(run: Run) -> Iterator[Object]:
    yield from notifications(run).values()
    yield build_volume_claim(run)
    yield build_report_ca(run, "PEM")
    for stage in STAGES:
        yield build_config_map(make_attempt(run, stage, 1), PLATFORM)
        yield build_job(make_attempt(run, stage, 1), PLATFORM)
    yield from (build_rendezvous_service(run, stage) for stage in TRAINING_STAGES)


def keys_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_in(inner)


def test_nothing_of_a_run_is_in_another_namespace(run: Run) -> None:
    for child in children(run):
        assert child["metadata"]["namespace"] == KEY.namespace
        spec = child.get("spec", {})
        assert "namespace" not in set(keys_in(spec)), "a reference may leave the run's namespace"


def test_pods_hold_no_credential_of_the_cluster(run: Run) -> None:
    for pod in pods(run).values():
        assert pod["automountServiceAccountToken"] is False
        # Whom the run names among the installer's: it is to a cloud that they are somebody.
        assert pod.get("serviceAccountName") == run.spec.scheduling.service_account_name
        projections = [source for volume in pod["volumes"] for source in volume.get("projected", {}).get("sources", [])]
        tokens = [source["serviceAccountToken"] for source in projections if "serviceAccountToken" in source]
        assert [token["audience"] for token in tokens] == ["llava-finetune-operator"]


def test_pods_ask_nothing_of_the_host(run: Run) -> None:
    for pod in pods(run).values():
        assert set(pod) <= {
            "restartPolicy", "terminationGracePeriodSeconds", "automountServiceAccountToken", "enableServiceLinks",
            "securityContext", "containers", "volumes", "subdomain", "nodeSelector", "tolerations", "imagePullSecrets",
            "serviceAccountName", "priorityClassName", "topologySpreadConstraints",
        }  # fmt: skip
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "projected", "persistentVolumeClaim", "emptyDir"}
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 65532)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        [container] = pod["containers"]
        assert "ports" not in container
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip


def test_pods_of_notifications_are_given_their_secret_and_the_way_out_alone(run: Run) -> None:
    for name, job in notifications(run).items():
        pod = job["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert "serviceAccountName" not in pod
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert volumes == {"notification", "secret-download", "download-ca"}, name
        mounts = pod["containers"][0]["volumeMounts"]
        assert {mount["name"] for mount in mounts} == volumes
        assert all(mount["readOnly"] for mount in mounts)
        named = {source["secret"]["name"] for volume in pod["volumes"]
                 for source in volume.get("projected", {}).get("sources", [])}  # fmt: skip
        assert named == {"proxies", "slack" if name == "slack" else "hooks"}


def test_secrets_of_notifications_are_in_the_pods_that_send_them_alone(run: Run) -> None:
    of_notifications = {one.secret for one in run.spec.notifications}
    for pod in pods(run).values():
        sources = [source for volume in pod["volumes"] for source in volume.get("projected", {}).get("sources", [])]
        assert not of_notifications & {source["secret"]["name"] for source in sources if "secret" in source}


SECRETS = {
    StageName.PREPARE: {"hub", "s3", "proxies"},
    StageName.ALIGN: {"mlflow", "wandb", "proxies"},
    StageName.TRAIN: {"mlflow", "wandb", "proxies"},
    StageName.MERGE: set(),
    StageName.EVALUATE: set(),
    StageName.PUBLISH: {"bucket", "hub-write", "oci", "key", "proxies"},
}
"""Which of the demanding run's Secrets each stage is given."""


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_given_the_credentials_that_it_uses_and_no_others(stage: StageName) -> None:
    """Those of sources are in prepare alone, of tracking servers in training, of destinations where is published."""
    pod = pods(make_run(**DEMANDING))[stage]
    sources = [source for volume in pod["volumes"] for source in volume.get("projected", {}).get("sources", [])]
    assert {source["secret"]["name"] for source in sources if "secret" in source} == SECRETS[stage]
    for volume in pods(make_run())[stage]["volumes"]:
        # What the installation has for all who go out.
        assert not volume["name"].startswith("secret-") or stage is StageName.PREPARE


def test_every_claim_but_the_runs_own_and_those_that_it_publishes_to_is_read_only(run: Run) -> None:
    for stage, pod in pods(run).items():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        publishes_to = {"models"} if stage is StageName.PUBLISH and run.spec.publish else set()
        for mount in pod["containers"][0]["volumeMounts"]:
            claim = volumes[mount["name"]].get("persistentVolumeClaim")
            if claim is None or claim["claimName"] in {f"{KEY.name}-run", *publishes_to}:
                continue
            assert (mount["readOnly"], claim["readOnly"]) == (True, True)
        writable = {mount["name"] for mount in pod["containers"][0]["volumeMounts"] if not mount.get("readOnly")}
        assert writable == {"run", "tmp", "shm"} | ({"destination-0"} if publishes_to else set())
