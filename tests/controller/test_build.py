"""Builders, by whole objects: what stands here is what the API server gets."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from llava_api.constants import TRAINING_STAGES, SecretRole, StageName
from llava_api.names import MAX_DNS_LABEL, MAX_RUN_NAME
from llava_api.run_config import RunConfig
from llava_api.spec import MAX_MIXTURE, Download, SecretRef
from llava_api.status import Data, Status
from llava_operator.build.common import Platform
from llava_operator.build.config import build_config_map, build_report_ca, build_run_config
from llava_operator.build.inputs import complete_download, parse_source
from llava_operator.build.job import build_job
from llava_operator.build.network_policy import build_network_policy
from llava_operator.build.resources import build_resources
from llava_operator.build.service import build_rendezvous_service
from llava_operator.build.volume import build_volume_claim
from llava_operator.deciding.policy import Policy
from llava_operator.deciding.references import list_references
from llava_operator.deciding.waiting import list_needs
from llava_operator.stages import STAGES as STAGE_TABLE
from tests.controller.makers import RESULTS, RUN_UID, STAGES, make_attempt, make_run

LOST = [
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    for taint in ("not-ready", "unreachable")
]
"""What every pod tolerates of a node that has gone."""
PLATFORM = Platform(trainer_image="registry/trainer:1", report_url="https://op-report.system.svc:8443/v1/progress")
OWNER = {
    "apiVersion": "finetune.llava.dev/v1alpha1",
    "kind": "LlavaFineTune",
    "name": "invoices",
    "uid": "run-uid",
    "controller": True,
    "blockOwnerDeletion": False,
}


def labels(stage: str | None = None, attempt: str | None = None) -> dict[str, str]:
    made = {
        "app.kubernetes.io/managed-by": "llava-finetune-operator",
        "finetune.llava.dev/run": "invoices",
        "finetune.llava.dev/stage": stage,
        "finetune.llava.dev/attempt": attempt,
    }
    return {key: value for key, value in made.items() if value is not None}


def metadata(name: str, stage: str | None = None, attempt: str | None = None) -> dict[str, Any]:
    return {"name": name, "namespace": "team", "labels": labels(stage, attempt), "ownerReferences": [OWNER]}


def expected_pod(stage: str, **changes: Any) -> dict[str, Any]:
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": LOST,
        "containers": [
            {
                "name": "stage",
                "image": "registry/trainer:1",
                "imagePullPolicy": "IfNotPresent",
                "command": ["llava-trainer", stage, "--config", "/etc/llava/run.json"],
                "env": [
                    {"name": "LLAVA_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "HOME", "value": "/tmp/home"},
                    {"name": "TMPDIR", "value": "/tmp"},
                    {"name": "TRITON_CACHE_DIR", "value": "/tmp/triton"},
                    {"name": "TORCHINDUCTOR_CACHE_DIR", "value": "/tmp/inductor"},
                    {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},
                ],
                "resources": {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "8Gi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/llava", "readOnly": True},
                    {"name": "report-ca", "mountPath": "/etc/llava-report", "readOnly": True},
                    {"name": "report-token", "mountPath": "/var/run/secrets/llava-report", "readOnly": True},
                    {"name": "run", "mountPath": "/llava/run"},
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "shm", "mountPath": "/dev/shm"},
                    {"name": "input-0", "mountPath": "/llava/inputs/models", "readOnly": True},
                    {"name": "input-1", "mountPath": "/llava/inputs/data", "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": f"invoices-{stage}-1"}},
            {"name": "report-ca", "configMap": {"name": "invoices-report-ca", "optional": True}},
            {
                "name": "report-token",
                "projected": {
                    "sources": [
                        {
                            "serviceAccountToken": {
                                "audience": "llava-finetune-operator",
                                "expirationSeconds": 3600,
                                "path": "token",
                            }
                        }
                    ]
                },
            },
            {"name": "run", "persistentVolumeClaim": {"claimName": "invoices-run"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "10Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            {"name": "input-0", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
            {"name": "input-1", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
        ],
        **changes,
    }


def expected_job(stage: str, pods: int, mode: str, pod: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(f"invoices-{stage}-1", stage, "1"),
        "spec": {
            "completionMode": mode,
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "stage", "operator": "NotIn", "values": [0]},
                    },
                ]
            },
            "template": {"metadata": {"labels": labels(stage, "1")}, "spec": pod},
        },
    }


def test_prepare_job_whole() -> None:
    expected = expected_job("prepare", 1, "NonIndexed", expected_pod("prepare"))
    assert build_job(make_attempt(make_run(), StageName.PREPARE, 1), PLATFORM) == expected


def test_train_job_whole() -> None:
    run = make_run(
        workers={"replicas": 2, "gpus": 8, "shmSize": "16Gi", "gracePeriodSeconds": 120,
                 "resources": {"requests": {"cpu": "32"}, "limits": {"memory": "500Gi", "rdma/hca": 1}}},
        training={"batch": {"perDevice": 1, "global": 16}},
        scheduling={"nodeSelector": {"pool": "a100"},
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                                    {"key": "spot", "value": "true", "tolerationSeconds": 60}]},
        image={"reference": "mine:2", "pullPolicy": "Always"},
        imagePullSecrets=[{"name": "registry"}],
    )  # fmt: skip
    pod = expected_pod(
        "train",
        terminationGracePeriodSeconds=120,
        subdomain="invoices-train",
        nodeSelector={"pool": "a100"},
        tolerations=[
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "spot", "operator": "Equal", "value": "true", "tolerationSeconds": 60},
            *LOST,
        ],
        imagePullSecrets=[{"name": "registry"}],
    )
    pod["containers"][0] |= {
        "image": "mine:2",
        "imagePullPolicy": "Always",
        "resources": {
            "requests": {"cpu": "32", "memory": "516Gi", "rdma/hca": "1", "nvidia.com/gpu": "8"},
            "limits": {"memory": "516Gi", "rdma/hca": "1", "nvidia.com/gpu": "8"},
        },
    }
    # The device plug-in says which GPUs a pod sees.
    pod["containers"][0]["env"].remove({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
    shm["emptyDir"]["sizeLimit"] = "16Gi"
    assert build_job(make_attempt(run, StageName.TRAIN, 1), PLATFORM) == expected_job("train", 2, "Indexed", pod)


@pytest.mark.parametrize("replicas", [1, 4])
def test_evaluate_job_whole(replicas: int) -> None:
    run = make_run(
        evaluation={"workers": {"replicas": replicas, "gpus": 1}},
        scheduling={"nodeSelector": {"pool": "a100"}, "queueName": "gpus", "topologySpread": [{"topologyKey": "zone"}]},
    )
    pod = expected_pod("evaluate", nodeSelector={"pool": "a100"})
    container = pod["containers"][0]
    container["resources"] = {
        "requests": {"cpu": "4", "memory": "40Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "40Gi", "nvidia.com/gpu": "1"},
    }
    container["env"].remove({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
    container["env"][1:1] = [
        {
            "name": f"LLAVA_INDEX_{name}FAILURES",
            "valueFrom": {
                "fieldRef": {"fieldPath": f"metadata.annotations['batch.kubernetes.io/job-index-{key}failure-count']"}
            },
        }
        for name, key in (("", ""), ("IGNORED_", "ignored-"))
    ]
    expected = expected_job("evaluate", replicas, "Indexed", pod)
    expected["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    del expected["spec"]["backoffLimit"]
    expected["spec"] |= {
        "suspend": True,
        "backoffLimitPerIndex": 2,
        "maxFailedIndexes": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "stage",
                        "operator": "In",
                        "values": [64, 65, 66, 67, 68, 69, 73, 74, 76, 77, 78, 81, 82, 85, 86, 87, 90, 91],
                    },
                },
            ]
        },
    }
    attempt = make_attempt(run, StageName.EVALUATE, 1, queue="gpus")
    assert build_job(attempt, PLATFORM) == expected


@pytest.mark.parametrize(
    ("evaluation", "gpus", "written"),
    [
        ({}, 1, {}),
        ({"gpus": 0}, 0, {}),
        ({"gpus": 1}, 1, {}),
        ({"workers": {"gpus": 0}}, 0, {}),
        ({"workers": {"gpus": 1, "replicas": 1}}, 1, {}),
        ({"workers": {"gpus": 0}, "gpus": 0}, 0, {}),
        ({"workers": {"replicas": 3}, "gpus": 0}, 0, {"replicas": 3, "gpus": None}),
    ],
)
def test_an_older_image_reads_how_many_gpus_evaluation_has(
    evaluation: dict[str, Any], gpus: int, written: dict[str, Any]
) -> None:
    """By whichever name they are asked for; what it does not know is written where several pods are asked for."""
    run = make_run(evaluation=evaluation)
    for stage in STAGES:
        said = json.loads(build_run_config(make_attempt(run, stage), PLATFORM).model_dump_json())["evaluation"]
        assert (said["gpus"], said.get("workers", {})) == (gpus, written)
    limits = build_resources(make_attempt(run, StageName.EVALUATE))["limits"]
    assert limits.get("nvidia.com/gpu", "0") == str(gpus)
    config = build_run_config(make_attempt(run, StageName.EVALUATE), PLATFORM)
    assert (config.evaluation.num_gpus, config.workers.device) == (gpus, "cuda" if gpus else "cpu")


@pytest.mark.parametrize(
    ("stage", "has_selector", "num_gpus"),
    [
        ("prepare", True, None),
        ("align", True, "4"),
        ("train", True, "4"),
        ("merge", False, None),
        ("evaluate", True, "1"),
        ("publish", False, None),
    ],
)
def test_stages_differ_in_nodes_and_gpus(stage: str, has_selector: bool, num_gpus: str | None) -> None:
    run = make_run(
        scheduling={"nodeSelector": {"pool": "a100"}, "tolerations": [{"operator": "Exists"}]},
        workers={"replicas": 1, "gpus": 4},
        training={"batch": {"perDevice": 1, "global": 4}},
        evaluation={"gpus": 1},
    )
    pod = build_job(make_attempt(run, StageName(stage), 1), PLATFORM)["spec"]["template"]["spec"]
    assert ("nodeSelector" in pod) is has_selector
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == num_gpus


def test_claim_that_holds_both_inputs_is_mounted_once() -> None:
    run = make_run(model={"source": "pvc://shared/model"}, dataset={
        "source": "pvc://shared/data", "format": "llava", "file": "train.json"})  # fmt: skip
    pod = build_job(make_attempt(run, StageName.MERGE, 1), PLATFORM)["spec"]["template"]["spec"]
    assert [v["name"] for v in pod["volumes"] if v["name"].startswith("input")] == ["input-0"]
    mounts = [m["mountPath"] for m in pod["containers"][0]["volumeMounts"]]
    assert [path for path in mounts if path.startswith("/llava/inputs")] == ["/llava/inputs/shared"]


@pytest.mark.parametrize(
    ("given", "requests", "limits"),
    [
        ({}, {"cpu": "2", "memory": "8Gi"}, {"memory": "8Gi"}),
        ({"requests": {"memory": "4Gi"}}, {"cpu": "2", "memory": "4Gi"}, {"memory": "4Gi"}),
        ({"limits": {"memory": "4Gi"}}, {"cpu": "2", "memory": "4Gi"}, {"memory": "4Gi"}),
        ({"limits": {"cpu": "3"}}, {"cpu": "3", "memory": "8Gi"}, {"cpu": "3", "memory": "8Gi"}),
        (
            {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
            {"cpu": "1", "memory": "1Gi"},
            {"cpu": "2", "memory": "2Gi"},
        ),
        (
            {"requests": {"ephemeral-storage": "9Gi"}},
            {"cpu": "2", "memory": "8Gi", "ephemeral-storage": "9Gi"},
            {"memory": "8Gi", "ephemeral-storage": "9Gi"},
        ),
    ],
)
def test_every_container_has_requests_and_a_memory_limit(
    given: dict[str, Any], requests: dict[str, str], limits: dict[str, str]
) -> None:
    run = make_run(prepare={"resources": given})
    assert build_resources(make_attempt(run, StageName.PREPARE)) == {"requests": requests, "limits": limits}


def test_gpus_come_from_the_field_made_for_them() -> None:
    run = make_run(workers={"replicas": 2, "gpus": 2, "resources": {"limits": {"nvidia.com/gpu": "7"}}})
    made = build_resources(make_attempt(run, StageName.TRAIN))
    assert made["requests"]["nvidia.com/gpu"] == made["limits"]["nvidia.com/gpu"] == "2"


NOT_READY, UNREACHABLE = (one["key"] for one in LOST)


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([{"key": "gpu", "operator": "Exists"}], [NOT_READY, UNREACHABLE]),
        ([{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 600}], [UNREACHABLE]),
        ([{"key": UNREACHABLE, "operator": "Exists"}], [NOT_READY]),
        ([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoSchedule"}], [NOT_READY, UNREACHABLE]),
        ([{"operator": "Exists"}], []),
        ([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}], []),
        ([{"operator": "Exists", "effect": "NoSchedule"}], [NOT_READY, UNREACHABLE]),
    ],
)
def test_what_the_spec_says_of_a_lost_node_counts(given: list[dict[str, Any]], added: list[str]) -> None:
    """By Kubernetes' own rule: of two tolerations of one taint the shorter counts."""
    run = make_run(scheduling={"tolerations": given})
    platform = replace(PLATFORM, node_loss_s=45)
    made = build_job(make_attempt(run, StageName.TRAIN), platform)["spec"]["template"]["spec"]["tolerations"]
    assert made[: len(given)] == given
    assert made[len(given) :] == [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 45} for key in added
    ]


@pytest.mark.parametrize("stage", list(StageName))
def test_pods_carry_the_installations_labels_and_annotations_and_ours_come_first(stage: StageName) -> None:
    forged = {"finetune.llava.dev/run": "another", "team": "vision"}
    platform = replace(PLATFORM, pod_labels=forged, pod_annotations={"karpenter.sh/do-not-disrupt": "true"})
    job = build_job(make_attempt(make_run(), stage), platform)
    template = job["spec"]["template"]["metadata"]
    assert template["labels"] == {**labels(stage, "1"), "team": "vision"}
    assert template["annotations"] == {"karpenter.sh/do-not-disrupt": "true"}
    assert job["metadata"] == metadata(f"invoices-{stage}-1", stage, "1"), "they are for pods"


SPREAD = [{"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 2, "whenUnsatisfiable": "ScheduleAnyway"},
          {"topologyKey": "kubernetes.io/hostname"}]  # fmt: skip


@pytest.mark.parametrize("stage", list(StageName))
def test_priority_and_account_are_every_stages_and_spread_is_the_gangs(stage: StageName) -> None:
    scheduling = {"priorityClassName": "batch", "serviceAccountName": "llava-s3", "topologySpread": SPREAD}
    made = build_job(make_attempt(make_run(scheduling=scheduling), stage), PLATFORM)["spec"]["template"]
    pod = made["spec"]
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("batch", "llava-s3")
    assert pod["automountServiceAccountToken"] is False
    plain = build_job(make_attempt(make_run(), stage), PLATFORM)["spec"]["template"]["spec"]
    assert not {"priorityClassName", "serviceAccountName", "topologySpreadConstraints"} & set(plain)
    if stage not in TRAINING_STAGES:
        assert "topologySpreadConstraints" not in pod
        return
    selector = {"labelSelector": {"matchLabels": labels(stage, "1")}}
    assert pod["topologySpreadConstraints"] == [
        {**SPREAD[0], **selector},
        {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", **selector},
    ]


@pytest.mark.parametrize("stage", [stage for stage in StageName if stage not in TRAINING_STAGES])
def test_only_training_holds_the_training_gpus(stage: StageName) -> None:
    """The others run when the gang's pods are gone, each by what the run gives that stage."""
    parts = {name: {"resources": {"requests": {"cpu": cpu, "memory": f"{cpu}Gi"}, "limits": {"memory": f"{cpu}Gi"}}}
             for name, cpu in (("prepare", "3"), ("merge", "5"), ("evaluation", "7"), ("publish", "2"))}  # fmt: skip
    parts["evaluation"]["gpus"] = 1
    parts["publish"]["destinations"] = [{"address": "s3://bucket/llava"}]
    run = make_run(
        workers={"replicas": 2, "gpus": 8, "resources": {"requests": {"cpu": "64", "rdma/hca": "1"}}},
        training={"batch": {"perDevice": 1, "global": 16}}, **parts,
    )  # fmt: skip
    job = build_job(make_attempt(run, stage), PLATFORM)
    cpu = {"prepare": "3", "merge": "5", "evaluate": "7", "publish": "2"}[stage]
    requests = {"cpu": cpu, "memory": f"{cpu}Gi"}
    limits = {"memory": f"{cpu}Gi"}
    if stage is StageName.EVALUATE:
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = "1"
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": requests, "limits": limits}
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (1, 1)


@pytest.mark.parametrize(("streams", "memory"), [(True, "6Gi"), (None, "40Gi")])
def test_merging_by_an_older_image_has_the_memory_that_it_takes(streams: bool | None, memory: str) -> None:
    found = RESULTS[StageName.PREPARE].prepare
    assert found is not None
    data = Data.model_validate(found.model_copy(update={"streams_merge": streams}).model_dump())
    run = make_run(Status(data=data), merge={"resources": {"requests": {"cpu": "2"}}})
    made = build_resources(make_attempt(run, StageName.MERGE))
    assert made == {"requests": {"cpu": "2", "memory": memory}, "limits": {"memory": memory}}
    given = make_run(Status(data=data), merge={"resources": {"requests": {"memory": "9Gi"}}})
    assert build_resources(make_attempt(given, StageName.MERGE))["limits"] == {"memory": "9Gi"}


def test_volume_claim_whole() -> None:
    run = make_run(storage={"size": "5Gi", "storageClassName": "fast"})
    owned = metadata("invoices-run")
    assert build_volume_claim(run) == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {**owned, "labels": {**owned["labels"], "finetune.llava.dev/run-uid": RUN_UID}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "5Gi"}},
            "storageClassName": "fast",
        },
    }


@pytest.mark.parametrize(("retain", "is_owned"), [("Always", False), ("OnSuccess", True), ("Never", True)])
def test_claim_that_is_always_retained_has_no_owner(retain: str, is_owned: bool) -> None:
    made = build_volume_claim(make_run(storage={"retain": retain}))
    assert ("ownerReferences" in made["metadata"]) is is_owned
    assert made["metadata"]["labels"]["finetune.llava.dev/run-uid"] == RUN_UID


@pytest.mark.parametrize("stage", list(StageName))
def test_every_stage_mounts_the_claim_that_the_run_names(stage: StageName) -> None:
    for storage, claim in (({}, "invoices-run"), ({"existingClaim": "shared"}, "shared")):
        job = build_job(make_attempt(make_run(storage=storage), stage), PLATFORM)
        volumes = job["spec"]["template"]["spec"]["volumes"]
        assert {"name": "run", "persistentVolumeClaim": {"claimName": claim}} in volumes


@pytest.mark.parametrize(
    ("replicas", "shards", "given", "modes"),
    [
        (1, 1, None, ["ReadWriteOnce"]),
        (2, 1, None, ["ReadWriteMany"]),
        (1, 2, None, ["ReadWriteMany"]),
        (1, 1, ["ReadWriteMany"], ["ReadWriteMany"]),
    ],
)
def test_access_modes_follow_from_the_replicas(
    replicas: int, shards: int, given: list[str] | None, modes: list[str]
) -> None:
    storage = {"accessModes": given} if given else {}
    run = make_run(
        workers={"replicas": replicas, "gpus": 0}, storage=storage, evaluation={"workers": {"replicas": shards}}
    )
    assert build_volume_claim(run)["spec"]["accessModes"] == modes
    assert "storageClassName" not in build_volume_claim(run)["spec"]


@pytest.mark.parametrize("stage", sorted(TRAINING_STAGES))
def test_rendezvous_service_whole(stage: StageName) -> None:
    assert build_rendezvous_service(make_run(), stage) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(f"invoices-{stage}", stage),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"finetune.llava.dev/run": "invoices", "finetune.llava.dev/stage": stage},
            "ports": [{"name": "rendezvous", "port": 29400, "targetPort": 29400}],
        },
    }


@pytest.mark.parametrize("stage", sorted(TRAINING_STAGES))
def test_network_policy_whole(stage: StageName) -> None:
    pods = {"matchLabels": {"finetune.llava.dev/run": "invoices", "finetune.llava.dev/stage": stage}}
    made = build_network_policy(make_run(), stage)
    assert made == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(f"invoices-{stage}", stage),
        "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": pods}]}]},
    }
    # The pods that it means are those of the stage's Job, of every attempt.
    labels = build_job(make_attempt(make_run(), stage, 3), PLATFORM)["spec"]["template"]["metadata"]["labels"]
    assert pods["matchLabels"].items() <= labels.items()


def test_alignment_runs_as_training_does() -> None:
    """But for the names and the command, the two Jobs are the same."""
    made = {stage: build_job(make_attempt(make_run(), stage, 1), PLATFORM) for stage in TRAINING_STAGES}
    texts = {stage: json.dumps(job) for stage, job in made.items()}
    assert texts[StageName.ALIGN] == re.sub(r"\btrain\b", "align", texts[StageName.TRAIN])
    assert made[StageName.ALIGN]["spec"]["completionMode"] == "Indexed"
    assert made[StageName.ALIGN]["spec"]["template"]["spec"]["subdomain"] == "invoices-align"
    config = build_run_config(make_attempt(make_run(), StageName.ALIGN, 1), PLATFORM)
    assert config.workers.rendezvous_host == "invoices-align-1-0.invoices-align.team.svc"
    assert (config.workers.num_nodes, config.workers.grace_period_seconds) == (2, 120)


def test_report_ca_whole() -> None:
    assert build_report_ca(make_run(), "PEM") == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata("invoices-report-ca"),
        "data": {"ca.crt": "PEM"},
    }


def test_config_map_carries_a_run_configuration_that_the_trainer_reads() -> None:
    made = build_config_map(make_attempt(make_run(), StageName.TRAIN, 1), PLATFORM)
    text = made["data"].pop("run.json")
    assert made == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata("invoices-train-1", "train", "1"),
        "immutable": True,
        "data": {},
    }
    attempt = make_attempt(make_run(), StageName.TRAIN)
    assert RunConfig.model_validate_json(text) == build_run_config(attempt, PLATFORM)
    said = json.loads(text)
    assert said["run"] == {
        "namespace": "team", "name": "invoices", "uid": "run-uid", "stage": "train", "attempt": 1,
    }  # fmt: skip
    assert said["workers"] == {
        "numNodes": 2,
        "processesPerNode": 1,
        "device": "cpu",
        "rendezvousHost": "invoices-train-1-0.invoices-train.team.svc",
        "rendezvousPort": 29400,
        "gracePeriodSeconds": 120,
        "stallLimitSeconds": 300,
    }
    assert (said["modelDir"], said["datasetDir"]) == ("/llava/inputs/models/llava", "/llava/inputs/data/set")
    assert said["volumeRoot"] == "/llava/run"
    assert said["reporting"] == {
        "url": PLATFORM.report_url,
        "caFile": "/etc/llava-report/ca.crt",
        "tokenFile": "/var/run/secrets/llava-report/token",
    }


@pytest.mark.parametrize(
    ("stage", "device"),
    [("prepare", "cpu"), ("align", "cuda"), ("train", "cuda"), ("merge", "cpu"), ("evaluate", "cuda")],
)
def test_layout_is_trainings_and_device_is_the_stages_own(stage: str, device: str) -> None:
    run = make_run(
        workers={"replicas": 2, "gpus": 4},
        evaluation={"gpus": 1},
        training={"batch": {"perDevice": 1, "global": 16}},
    )
    config = build_run_config(make_attempt(run, StageName(stage), 1), PLATFORM)
    assert (config.workers.world_size, config.workers.device, config.gradient_accumulation) == (8, device, 2)


@pytest.mark.parametrize(
    ("source", "claim", "path"),
    [("pvc://c", "c", ""), ("pvc://c/", "c", ""), ("pvc://c/a/b/", "c", "a/b"), ("pvc://c//a", "c", "a")],
)
def test_sources(source: str, claim: str, path: str) -> None:
    assert parse_source(source) == (claim, path)


@pytest.mark.parametrize("source", ["hf://a/b", "s3://b/p", "https://h/p/"])
def test_sources_without_a_claim(source: str) -> None:
    assert parse_source(source) is None


FROM_EVERYWHERE: dict[str, Any] = {
    "model": {"languageModel": "pvc://vicuna/7b", "visionTower": "hf://openai/clip-vit-large-patch14-336",
              "projector": "pvc://shared/projector", "secretRef": {"name": "hub"}},
    "dataset": {"source": "s3://invoices/set", "format": "llava", "file": "train.json",
                "secretRef": {"name": "s3"}},
    "alignment": {"dataset": {"source": "pvc://shared/captions", "format": "llava", "file": "captions.json",
                              "secretRef": {"name": "s3"}},
                  "batch": {"perDevice": 1, "global": 2}},
    "download": {"caConfigMap": "corporate", "httpsProxy": "http://proxy:3128", "secretRef": {"name": "proxies"}},
}  # fmt: skip


def inputs_of(stage: StageName, platform: Platform = PLATFORM, **spec: Any) -> tuple[list[Any], list[Any]]:
    """Volumes and mounts besides those that every pod has."""
    pod = build_job(make_attempt(make_run(**spec), stage, 1), platform)["spec"]["template"]["spec"]
    plain = {"config", "report-ca", "report-token", "run", "tmp", "shm"}
    volumes = [one for one in pod["volumes"] if one["name"] not in plain]
    mounts = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] not in plain]
    return volumes, mounts


def known_keys(role: str, secret: str, *keys: str) -> dict[str, Any]:
    """Volume of a Secret that is waited for, and of which a folder with known keys is shown."""
    items = [{"key": key, "path": f"known~keys/{key}"} for key in keys]
    sources = [{"secret": {"name": secret}}, {"secret": {"name": secret, "items": items, "optional": True}}]
    return {"name": f"secret-{role}", "projected": {"defaultMode": 0o440, "sources": sources}}


def test_prepare_reads_every_claim_and_secret_and_the_authorities() -> None:
    volumes, mounts = inputs_of(StageName.PREPARE, **FROM_EVERYWHERE)
    assert volumes == [
        {"name": "input-0", "persistentVolumeClaim": {"claimName": "vicuna", "readOnly": True}},
        {"name": "input-1", "persistentVolumeClaim": {"claimName": "shared", "readOnly": True}},
        known_keys("model", "hub", "token"),
        known_keys("dataset", "s3", "accessKeyId", "secretAccessKey", "sessionToken", "endpoint", "region"),
        known_keys("download", "proxies", "httpProxy", "httpsProxy"),
        {"name": "download-ca",
         "configMap": {"name": "corporate", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]  # fmt: skip
    assert mounts == [
        {"name": "input-0", "mountPath": "/llava/inputs/vicuna", "readOnly": True},
        {"name": "input-1", "mountPath": "/llava/inputs/shared", "readOnly": True},
        {"name": "secret-model", "mountPath": "/llava/secrets/model", "readOnly": True, "subPath": "known~keys"},
        {"name": "secret-dataset", "mountPath": "/llava/secrets/dataset", "readOnly": True, "subPath": "known~keys"},
        {"name": "secret-download", "mountPath": "/llava/secrets/download", "readOnly": True, "subPath": "known~keys"},
        {"name": "download-ca", "mountPath": "/etc/llava-download", "readOnly": True},
    ]


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        ({"source": "hf://a/b"}, ["token"]),
        ({"source": "s3://bucket/x"}, ["accessKeyId", "secretAccessKey", "sessionToken", "endpoint", "region"]),
        ({"source": "https://h/x/"}, ["username", "password", "bearer"]),
        (
            {"languageModel": "hf://a/b", "visionTower": "https://h/x/", "projector": "pvc://c/d"},
            ["token", "username", "password", "bearer"],
        ),
    ],
    ids=["hub", "bucket", "web", "several"],
)
def test_of_a_secret_only_keys_for_the_sources_beside_it_are_mounted(parts: dict[str, str], keys: list[str]) -> None:
    volumes, _ = inputs_of(StageName.PREPARE, model={**parts, "secretRef": {"name": "s"}})
    [volume] = [one for one in volumes if one["name"] == "secret-model"]
    assert volume == known_keys("model", "s", *keys)


def test_the_alignment_dataset_has_a_secret_of_its_own() -> None:
    dataset = {"source": "hf://a/b", "format": "llava", "file": "c.json", "secretRef": {"name": "s"}}
    volumes, mounts = inputs_of(
        StageName.PREPARE,
        alignment={"dataset": dataset, "freshProjector": True, "batch": {"perDevice": 1, "global": 2}},
    )
    assert volumes[-1] == known_keys("alignment-dataset", "s", "token")
    assert mounts[-1]["mountPath"] == "/llava/secrets/alignment-dataset"


MIXTURE: list[dict[str, Any]] = [
    {"dataset": {"source": "hf://a/b", "format": "llava", "file": "a.json", "secretRef": {"name": "s"}}, "share": 0.1},
    {"dataset": {"source": "pvc://general/set", "format": "llava", "file": "b.json"}, "share": 0.2},
    {"dataset": {"source": "s3://b/p", "format": "llava", "file": "c.json", "secretRef": {"name": "t"}}, "share": 0.1},
]


def test_each_dataset_of_the_mixture_has_a_claim_or_a_secret_and_a_folder_of_its_own() -> None:
    volumes, mounts = inputs_of(StageName.PREPARE, mixture=MIXTURE)
    assert [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one] == [
        "models", "data", "general",
    ]  # fmt: skip
    assert volumes[3:] == [
        known_keys("mixture-0", "s", "token"),
        known_keys("mixture-2", "t", "accessKeyId", "secretAccessKey", "sessionToken", "endpoint", "region"),
    ]
    assert [mount["mountPath"] for mount in mounts[3:]] == ["/llava/secrets/mixture-0", "/llava/secrets/mixture-2"]
    # Training reads what is on a claim in place, and sees no Secret.
    volumes, _ = inputs_of(StageName.TRAIN, mixture=MIXTURE)
    assert [one["persistentVolumeClaim"]["claimName"] for one in volumes] == ["models", "data", "general"]
    config = build_run_config(make_attempt(make_run(mixture=MIXTURE), StageName.TRAIN, 1), PLATFORM)
    assert [str(folder) for folder in config.mixture_dirs] == [
        "/llava/run/inputs/downloads/mixture-0", "/llava/inputs/general/set", "/llava/run/inputs/downloads/mixture-2",
    ]  # fmt: skip
    assert [part.share for part in config.mixture] == [0.1, 0.2, 0.1]


def test_whoever_has_to_make_what_the_mixture_names_is_told_the_field() -> None:
    named = {(one.name, one.field) for one in list_references(make_run(mixture=MIXTURE))}
    assert {
        ("s", "spec.mixture[0].dataset.secretRef"), ("general", "spec.mixture[1].dataset.source"),
        ("t", "spec.mixture[2].dataset.secretRef"),
    } <= named  # fmt: skip
    assert list_needs(make_run(mixture=MIXTURE).spec, STAGE_TABLE[StageName.PREPARE]) == ["Secret s", "Secret t"]


RETENTION: dict[str, Any] = {
    "retention": {"dataset": {"source": "pvc://general/set", "format": "llava", "file": "g.json"}, "maximumLoss": 0.1}
}


def test_the_retention_set_is_read_where_it_is_checked_and_where_it_is_asked() -> None:
    for stage in StageName:
        volumes, _ = inputs_of(stage, evaluation=RETENTION)
        claims = [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]
        assert ("general" in claims) == (stage in (StageName.PREPARE, StageName.EVALUATE))
    config = build_run_config(make_attempt(make_run(evaluation=RETENTION), StageName.EVALUATE, 1), PLATFORM)
    assert str(config.retention_dir) == "/llava/inputs/general/set"
    named = {(one.name, one.field) for one in list_references(make_run(evaluation=RETENTION))}
    assert ("general", "spec.evaluation.retention.dataset.source") in named


def test_the_retention_set_has_a_secret_of_its_own_in_prepare_alone() -> None:
    dataset = {**RETENTION["retention"]["dataset"], "source": "hf://a/b", "secretRef": {"name": "s"}}
    evaluation = {"retention": {"dataset": dataset}}
    volumes, _ = inputs_of(StageName.PREPARE, evaluation=evaluation)
    assert volumes[-1] == known_keys("retention", "s", "token")
    volumes, _ = inputs_of(StageName.EVALUATE, evaluation=evaluation)
    assert "secret-retention" not in {one["name"] for one in volumes}
    config = build_run_config(make_attempt(make_run(evaluation=evaluation), StageName.EVALUATE, 1), PLATFORM)
    assert str(config.retention_dir) == "/llava/run/inputs/downloads/retention"


def test_as_many_datasets_as_there_may_be_have_a_role_each() -> None:
    assert len({SecretRole.of_mixture(index) for index in range(MAX_MIXTURE)}) == MAX_MIXTURE


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"source": "pvc://models/llava", "secretRef": {"name": "s"}}},
        {"dataset": {"source": "pvc://data/set", "format": "llava", "file": "t.json", "secretRef": {"name": "s"}}},
    ],
    ids=["model", "dataset"],
)
def test_a_secret_for_what_is_on_a_claim_is_not_mounted_or_waited_for(spec: dict[str, Any]) -> None:
    volumes, _ = inputs_of(StageName.PREPARE, **spec)
    assert not [one for one in volumes if "projected" in one or "secret" in one]
    assert list_needs(make_run(**spec).spec, STAGE_TABLE[StageName.PREPARE]) == []


def test_no_key_of_a_secret_can_be_named_like_the_folder_that_is_shown() -> None:
    """Kubernetes' rule for keys of Secrets: [-._a-zA-Z0-9]+."""
    [volume] = [one for one in inputs_of(StageName.PREPARE, **FROM_EVERYWHERE)[0] if one["name"] == "secret-model"]
    [item] = volume["projected"]["sources"][1]["secret"]["items"]
    assert not re.fullmatch("[-._a-zA-Z0-9]+", item["path"].split("/")[0])


@pytest.mark.parametrize("stage", [stage for stage in StageName if stage not in (StageName.PREPARE, StageName.PUBLISH)])
def test_later_stages_read_claims_in_place_and_see_no_secret(stage: StageName) -> None:
    volumes, mounts = inputs_of(stage, **FROM_EVERYWHERE)
    assert volumes == [{"name": "input-0", "persistentVolumeClaim": {"claimName": "shared", "readOnly": True}}]
    assert mounts == [{"name": "input-0", "mountPath": "/llava/inputs/shared", "readOnly": True}]


def test_no_secret_reaches_the_environment() -> None:
    for stage in StageName:
        job = build_job(make_attempt(make_run(**FROM_EVERYWHERE), stage, 1), PLATFORM)
        [container] = job["spec"]["template"]["spec"]["containers"]
        assert "envFrom" not in container
        assert not [one for one in container["env"] if "secretKeyRef" in one.get("valueFrom", {})]


def test_xet_is_for_prepare_alone_and_no_part_of_the_configuration() -> None:
    """An older trainer image reads no configuration with a field that it does not know."""
    platform = replace(PLATFORM, uses_xet=True)
    for stage in StageName:
        attempt = make_attempt(make_run(**FROM_EVERYWHERE), stage, 1)
        [plain], [opted] = (
            build_job(attempt, one)["spec"]["template"]["spec"]["containers"] for one in (PLATFORM, platform)
        )
        switch = {"name": "HF_HUB_DISABLE_XET", "value": "0"}
        assert [one for one in opted["env"] if one not in plain["env"]] == [switch] * (stage is StageName.PREPARE)
        assert build_run_config(attempt, platform) == build_run_config(attempt, PLATFORM)


def test_hosts_of_pictures_are_told_to_prepare_alone_and_are_no_part_of_the_configuration() -> None:
    platform = replace(PLATFORM, policy=Policy(picture_hosts=("a.example", "b.example:8443")))
    for stage in StageName:
        attempt = make_attempt(make_run(**FROM_EVERYWHERE), stage, 1)
        [plain], [told] = (
            build_job(attempt, one)["spec"]["template"]["spec"]["containers"] for one in (PLATFORM, platform)
        )
        hosts = {"name": "LLAVA_PICTURE_HOSTS", "value": "a.example,b.example:8443"}
        assert [one for one in told["env"] if one not in plain["env"]] == [hosts] * (stage is StageName.PREPARE)
        assert build_run_config(attempt, platform) == build_run_config(attempt, PLATFORM)


def test_authorities_of_the_installation_may_be_missing_in_a_namespace() -> None:
    platform = replace(PLATFORM, download=Download(ca_config_map="everyones"))
    source = {"name": "everyones", "items": [{"key": "ca.crt", "path": "ca.crt"}], "optional": True}
    volumes, _ = inputs_of(StageName.PREPARE, platform)
    assert volumes[-1] == {"name": "download-ca", "configMap": source}
    volumes, _ = inputs_of(StageName.PREPARE, platform, download={"caConfigMap": "own"})
    assert volumes[-1]["configMap"] == {"name": "own", "items": source["items"]}


def test_proxies_of_the_installation_may_be_missing_in_a_namespace_and_give_way_to_the_runs_own() -> None:
    default = Download(https_proxy="http://default:1", secret_ref=SecretRef(name="everyones"))
    platform = replace(PLATFORM, download=default)
    volumes, mounts = inputs_of(StageName.PREPARE, platform)
    items = [{"key": key, "path": key} for key in ("httpProxy", "httpsProxy")]
    source = {"secret": {"name": "everyones", "items": items, "optional": True}}
    assert volumes[-1] == {"name": "secret-download", "projected": {"defaultMode": 0o440, "sources": [source]}}
    assert mounts[-1] == {"name": "secret-download", "mountPath": "/llava/secrets/download", "readOnly": True}
    own = {"secretRef": {"name": "own"}}
    volumes, _ = inputs_of(StageName.PREPARE, platform, download=own)
    assert volumes[-1] == known_keys("download", "own", "httpProxy", "httpsProxy")
    # An address in a field comes before one in a Secret.
    config = build_run_config(make_attempt(make_run(download=own), StageName.PREPARE, 1), platform)
    assert (config.download.https_proxy, config.download.secret_ref) == (None, SecretRef(name="own"))
    # One that is named has to have keys: the installation's is not.
    config = build_run_config(make_attempt(make_run(), StageName.PREPARE, 1), platform)
    assert (config.download.https_proxy, config.download.secret_ref) == ("http://default:1", None)


def test_run_says_how_to_fetch_and_the_installation_the_rest() -> None:
    default = Download(hub_endpoint="https://mirror", https_proxy="http://default:1", no_proxy=".svc")
    made = complete_download(Download(https_proxy="http://own:2", ca_config_map="own"), default)
    assert made == Download(
        hub_endpoint="https://mirror", https_proxy="http://own:2", no_proxy=".svc", ca_config_map="own"
    )
    config = build_run_config(make_attempt(make_run(), StageName.PREPARE, 1), replace(PLATFORM, download=default))
    assert config.download == default


def test_stages_that_fetch_nothing_are_told_of_no_proxy() -> None:
    run = make_run(download={"httpsProxy": "http://me:hunter2@proxy:3128"})
    made = {stage: build_config_map(make_attempt(run, stage, 1), PLATFORM)["data"]["run.json"] for stage in STAGES}
    assert [stage for stage, text in made.items() if "hunter2" in text] == [StageName.PREPARE]


def test_folders_of_what_is_fetched_are_on_the_runs_volume() -> None:
    config = build_run_config(make_attempt(make_run(**FROM_EVERYWHERE), StageName.ALIGN, 1), PLATFORM)
    assert str(config.model_dir) == "/llava/run/inputs/model"
    assert str(config.dataset_dir) == "/llava/run/inputs/downloads/dataset"
    assert str(config.alignment_dir) == "/llava/inputs/shared/captions"
    assert build_run_config(make_attempt(make_run(), StageName.TRAIN, 1), PLATFORM).alignment_dir is None


def test_longest_name_leaves_room_for_every_label() -> None:
    run = make_run()
    longest = run.__class__(**{**run.__dict__, "key": run.key.__class__("team", "x" * MAX_RUN_NAME)})
    for stage in STAGES:
        job = build_job(make_attempt(longest, stage, 1), PLATFORM)
        assert len(job["metadata"]["name"]) <= MAX_DNS_LABEL
        assert all(len(value) <= MAX_DNS_LABEL for value in job["metadata"]["labels"].values())
