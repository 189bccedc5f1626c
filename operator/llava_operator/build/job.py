"""The Job of a stage."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from llava_api.constants import (
    CONFIG_PATH,
    LABEL_QUEUE,
    REPORT_CA_PATH,
    REPORT_TOKEN_PATH,
    RUN_VOLUME_PATH,
    STAGE_CONTAINER,
    TOKEN_AUDIENCE,
)
from llava_api.failures import FINAL_EXIT_CODES
from llava_api.names import rendezvous_service_name, report_ca_name
from llava_api.spec import TopologySpread
from llava_operator.build.common import Platform, build_labels, build_metadata
from llava_operator.build.destinations import RUN_VOLUME, build_destination_mounts, build_destination_volumes
from llava_operator.build.environment import build_environment
from llava_operator.build.inputs import build_inputs
from llava_operator.build.resources import build_resources
from llava_operator.build.security import build_container_security, build_pod_security
from llava_operator.build.tolerations import build_tolerations
from llava_operator.kube.objects import Object
from llava_operator.run import Attempt
from llava_operator.stages import RETRIES

TMP_SIZE = "10Gi"
"""Most that caches and temporary files may take on the node."""
SHM_SIZE = "1Gi"
"""Size of /dev/shm outside training; it is taken only when used."""
TOKEN_EXPIRY_S = 3600

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


_RETRIED_BY_INDEX: Object = {"backoffLimitPerIndex": RETRIES, "maxFailedIndexes": 0}
_SHARD_FAILURE_POLICY: Object = {
    "rules": [
        # It is replaced, and nothing counts it: that it takes longer each time is up to the Job controller.
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        # Another pod would end alike, or only another attempt helps: none of the others need go on.
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": STAGE_CONTAINER, "operator": "In", "values": list(FINAL_EXIT_CODES)},
        },
        # Whatever else a pod ends by counts against its index.
    ]
}


def build_job(attempt: Attempt, platform: Platform) -> Object:
    """The Job of one attempt of a stage.

    It runs once, and no pod of it is ever replaced; but where each pod works for itself, each is replaced by itself,
    as often as a stage is tried again, and the Job fails once that was not enough for one of them.
    """
    labels = build_labels(attempt.run, attempt.stage.name, attempt.number)
    pods, queue = attempt.num_pods, attempt.settings.queue
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": build_metadata(attempt.run, attempt.job, labels | ({LABEL_QUEUE: queue} if queue else {})),
        "spec": {
            # Whoever holds it back lets it go: the operator never writes this again.
            **({"suspend": True} if queue else {}),
            "completionMode": "Indexed" if attempt.stage.is_gang or attempt.stage.is_sharded else "NonIndexed",
            "completions": pods,
            "parallelism": pods,
            **(_RETRIED_BY_INDEX if attempt.stage.is_sharded else {"backoffLimit": 0}),
            # The next pod of an index begins when the one before has ended.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": _SHARD_FAILURE_POLICY if attempt.stage.is_sharded else _POD_FAILURE_POLICY,
            "template": {
                "metadata": _build_pod_metadata(labels, platform),
                "spec": _build_pod(attempt, platform, labels),
            },
        },
    }


def _build_pod_metadata(labels: Mapping[str, str], platform: Platform) -> Object:
    """The installation's labels and annotations; by ours pods are found, so that they come before."""
    annotations = {"annotations": dict(platform.pod_annotations)} if platform.pod_annotations else {}
    return {"labels": {**platform.pod_labels, **labels}, **annotations}


def _build_spread(spread: TopologySpread, labels: Mapping[str, str]) -> Object:
    """Only pods of the very attempt count: those of the one before may be on their way out."""
    made: Object = spread.model_dump(mode="json", by_alias=True)
    return {**made, "labelSelector": {"matchLabels": dict(labels)}}


def _build_pod(attempt: Attempt, platform: Platform, labels: Mapping[str, str]) -> Object:
    spec, stage = attempt.spec, attempt.stage
    pod: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": attempt.grace_period_s,
        "tolerations": build_tolerations(spec.scheduling.tolerations, platform.node_loss_s),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": build_pod_security(),
        "containers": [_build_container(attempt, platform)],
        "volumes": _build_volumes(attempt, platform),
    }
    if stage.is_gang:
        pod["subdomain"] = rendezvous_service_name(attempt.run.key.name, stage.name)
    if spec.scheduling.node_selector and stage.follows_node_selector:
        pod["nodeSelector"] = dict(spec.scheduling.node_selector)
    if spec.scheduling.topology_spread and stage.is_gang:
        pod["topologySpreadConstraints"] = [_build_spread(one, labels) for one in spec.scheduling.topology_spread]
    if spec.scheduling.priority_class_name:
        pod["priorityClassName"] = spec.scheduling.priority_class_name
    if spec.scheduling.service_account_name:
        pod["serviceAccountName"] = spec.scheduling.service_account_name
    if attempt.settings.avoided_nodes:
        pod["affinity"] = _avoid(attempt.settings.avoided_nodes)
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    return pod


def _avoid(nodes: Sequence[str]) -> Object:
    """Preferred, never required: where there are no others, an attempt on a doubtful node is better than none."""
    preferences = [
        {
            "weight": 100,
            "preference": {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": [node]}]},
        }
        for node in nodes
    ]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferences}}


def _build_container(attempt: Attempt, platform: Platform) -> Object:
    return {
        "name": STAGE_CONTAINER,
        "image": attempt.spec.image.reference or platform.trainer_image,
        "imagePullPolicy": attempt.spec.image.pull_policy,
        "command": ["llava-trainer", str(attempt.stage.name), "--config", CONFIG_PATH],
        "env": build_environment(attempt, uses_xet=platform.uses_xet, picture_hosts=platform.policy.picture_hosts),
        "resources": build_resources(attempt),
        "securityContext": build_container_security(),
        # A process that was killed before it could write leaves its log's last lines.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _build_mounts(attempt, platform),
    }


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _build_mounts(attempt: Attempt, platform: Platform) -> list[Object]:
    return [
        {"name": "config", "mountPath": _parent(CONFIG_PATH), "readOnly": True},
        {"name": "report-ca", "mountPath": _parent(REPORT_CA_PATH), "readOnly": True},
        {"name": "report-token", "mountPath": _parent(REPORT_TOKEN_PATH), "readOnly": True},
        {"name": RUN_VOLUME, "mountPath": RUN_VOLUME_PATH},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        *(one.mount for one in build_inputs(attempt.spec, attempt.stage, platform.download)),
        *build_destination_mounts(attempt),
    ]


def _build_volumes(attempt: Attempt, platform: Platform) -> list[Object]:
    name = attempt.run.key.name
    token = {
        "audience": TOKEN_AUDIENCE,
        "expirationSeconds": TOKEN_EXPIRY_S,
        "path": PurePosixPath(REPORT_TOKEN_PATH).name,
    }
    shm_size = attempt.spec.workers.shm_size if attempt.stage.is_gang else SHM_SIZE
    return [
        {"name": "config", "configMap": {"name": attempt.job}},
        # Optional: a stage runs also where its progress cannot be reported.
        {"name": "report-ca", "configMap": {"name": report_ca_name(name), "optional": True}},
        {"name": "report-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": RUN_VOLUME, "persistentVolumeClaim": {"claimName": attempt.spec.storage.claim_for(name)}},
        {"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm_size}},
        *(one.volume for one in build_inputs(attempt.spec, attempt.stage, platform.download)),
        *build_destination_volumes(attempt),
    ]
