"""The Job of a stage."""

from pathlib import PurePosixPath

from llava_api.constants import (
    CONFIG_PATH,
    REPORT_CA_PATH,
    REPORT_TOKEN_PATH,
    RUN_VOLUME_PATH,
    STAGE_CONTAINER,
    TOKEN_AUDIENCE,
    TRAINING_STAGES,
    StageName,
)
from llava_api.names import job_name, rendezvous_service_name, report_ca_name, volume_claim_name
from llava_api.spec import Toleration
from llava_operator.build.common import Platform, build_labels, build_metadata
from llava_operator.build.config import grace_period_s
from llava_operator.build.environment import build_environment
from llava_operator.build.inputs import build_inputs
from llava_operator.build.resources import build_resources
from llava_operator.run import Run, num_gpus, num_pods
from llava_operator.wire import Object

UID = 65532
TMP_SIZE = "10Gi"
"""Most that caches and temporary files may take on the node."""
SHM_SIZE = "1Gi"
"""Size of /dev/shm outside training; it is taken only when used."""
TOKEN_EXPIRY_S = 3600

_FOLLOWS_NODE_SELECTOR = TRAINING_STAGES | {StageName.PREPARE, StageName.EVALUATE}
"""prepare is the first to use the run's volume: where a volume binds to a zone, it must be training's zone."""

_POD_FAILURE_POLICY: Object = {
    "rules": [
        # First: a drained or preempted pod also ends with an exit code, but it is not the training that failed.
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        # One pod's failure ends the attempt: the others only wait for it.
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": STAGE_CONTAINER, "operator": "NotIn", "values": [0]},
        },
    ]
}


def build_job(run: Run, stage: StageName, attempt: int, platform: Platform) -> Object:
    """The Job of one attempt of a stage: it runs once, and no pod of it is ever replaced."""
    labels = build_labels(run, stage, attempt)
    pods = num_pods(run, stage)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": build_metadata(run, job_name(run.key.name, stage, attempt), labels),
        "spec": {
            "completionMode": "Indexed" if stage in TRAINING_STAGES else "NonIndexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": _POD_FAILURE_POLICY,
            "template": {
                "metadata": {"labels": labels},
                "spec": _build_pod(run, stage, attempt, platform),
            },
        },
    }


def _build_pod(run: Run, stage: StageName, attempt: int, platform: Platform) -> Object:
    spec = run.spec
    pod: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_period_s(run, stage),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            # Without it the kubelet walks a checkpoint volume of millions of files before every start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_build_container(run, stage, platform)],
        "volumes": _build_volumes(run, stage, attempt, platform),
    }
    if stage in TRAINING_STAGES:
        pod["subdomain"] = rendezvous_service_name(run.key.name, stage)
    if spec.scheduling.node_selector and stage in _FOLLOWS_NODE_SELECTOR:
        pod["nodeSelector"] = dict(spec.scheduling.node_selector)
    if spec.scheduling.tolerations:
        pod["tolerations"] = [_build_toleration(toleration) for toleration in spec.scheduling.tolerations]
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    return pod


def _build_toleration(toleration: Toleration) -> Object:
    made: Object = toleration.model_dump(mode="json", by_alias=True, exclude_none=True)
    return made


def _build_container(run: Run, stage: StageName, platform: Platform) -> Object:
    return {
        "name": STAGE_CONTAINER,
        "image": run.spec.image.reference or platform.trainer_image,
        "imagePullPolicy": run.spec.image.pull_policy,
        "command": ["llava-trainer", str(stage), "--config", CONFIG_PATH],
        "env": build_environment(run, stage, uses_xet=platform.uses_xet),
        "resources": build_resources(run, stage, num_gpus(run, stage)),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # A process that was killed before it could write leaves its log's last lines.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _build_mounts(run, stage, platform),
    }


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _build_mounts(run: Run, stage: StageName, platform: Platform) -> list[Object]:
    return [
        {"name": "config", "mountPath": _parent(CONFIG_PATH), "readOnly": True},
        {"name": "report-ca", "mountPath": _parent(REPORT_CA_PATH), "readOnly": True},
        {"name": "report-token", "mountPath": _parent(REPORT_TOKEN_PATH), "readOnly": True},
        {"name": "run", "mountPath": RUN_VOLUME_PATH},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        *(one.mount for one in build_inputs(run.spec, stage, platform.download)),
    ]


def _build_volumes(run: Run, stage: StageName, attempt: int, platform: Platform) -> list[Object]:
    name = run.key.name
    token = {
        "audience": TOKEN_AUDIENCE,
        "expirationSeconds": TOKEN_EXPIRY_S,
        "path": PurePosixPath(REPORT_TOKEN_PATH).name,
    }
    shm_size = run.spec.workers.shm_size if stage in TRAINING_STAGES else SHM_SIZE
    return [
        {"name": "config", "configMap": {"name": job_name(name, stage, attempt)}},
        # Optional: a stage runs also where its progress cannot be reported.
        {"name": "report-ca", "configMap": {"name": report_ca_name(name), "optional": True}},
        {"name": "report-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "run", "persistentVolumeClaim": {"claimName": volume_claim_name(name)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm_size}},
        *(one.volume for one in build_inputs(run.spec, stage, platform.download)),
    ]
