"""The Job that tells one receiver of one event. Pure.

It is no stage's: no label says so, its name is made otherwise, and nothing of a run waits for it. Its pod has nothing
of the run but one Secret, and the tenant's own place in the network.
"""

from typing import Final

from llava_api.constants import (
    ENV_DELIVERY,
    LABEL_MANAGED_BY,
    LABEL_NOTIFICATION,
    NOTIFICATION_KEYS,
    NOTIFICATION_SECRET_PATH,
    NOTIFIER_CONTAINER,
)
from llava_api.delivery import EXIT_REFUSED, Delivery
from llava_api.names import notification_job_name
from llava_api.spec import Notification
from llava_api.status import NotificationStatus
from llava_operator.build.common import Platform, build_labels, build_metadata
from llava_operator.build.event import build_event, build_slack_body, build_webhook_body
from llava_operator.build.inputs import SECRET_MODE, build_way_out, complete_download
from llava_operator.build.security import build_container_security, build_pod_security
from llava_operator.build.tolerations import build_tolerations
from llava_operator.kube.objects import Object
from llava_operator.run import Run

PODS = 5
"""Pods that try one after the other, each for a quarter of an hour; Kubernetes waits longer and longer in between."""
DEADLINE_S = 7200
"""After which the Job ends, whatever its pods wait for: a Secret that is missing, a place, a quota."""
KEPT_S = 86_400
"""For which a Job that has ended stays to be looked at: an operator that is away for longer sends the same again."""
GRACE_PERIOD_S = 5
RESOURCES: Final[Object] = {
    "requests": {"cpu": "10m", "memory": "64Mi"},
    "limits": {"memory": "128Mi"},
}


def build_notification_job(run: Run, wanted: Notification, told: NotificationStatus, platform: Platform) -> Object:
    """The Job of one message.

    Args:
        run: as it is now.
        wanted: the receiver, as the spec has it now.
        told: what it is told.
        platform: what the installation adds.
    """
    labels = {**build_labels(run), LABEL_NOTIFICATION: wanted.name}
    # Nobody watches its pod: the Job says how it ended.
    pod_labels = {name: value for name, value in labels.items() if name != LABEL_MANAGED_BY}
    annotations = {"annotations": dict(platform.pod_annotations)} if platform.pod_annotations else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": build_metadata(run, notification_job_name(run.key.name, told.id, told.name), labels),
        "spec": {
            "backoffLimit": PODS - 1,
            "activeDeadlineSeconds": DEADLINE_S,
            "ttlSecondsAfterFinished": KEPT_S,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": NOTIFIER_CONTAINER, "operator": "In", "values": [EXIT_REFUSED],
                        },
                    },
                ]
            },
            "template": {
                "metadata": {"labels": {**platform.pod_labels, **pod_labels}, **annotations},
                "spec": _build_pod(run, wanted, build_delivery(run, wanted, told, platform), platform),
            },
        },
    }  # fmt: skip


def build_delivery(run: Run, wanted: Notification, told: NotificationStatus, platform: Platform) -> Delivery:
    """What the pod is handed."""
    event = build_event(run, told)
    body, content_type = build_slack_body(event) if wanted.slack else build_webhook_body(event)
    own, way_out = run.spec.download, complete_download(run.spec.download, platform.download)
    return Delivery(
        kind="slack" if wanted.slack else "webhook",
        id=told.id,
        body=body,
        content_type=content_type,
        url=wanted.url,
        is_signed=wanted.webhook is not None and wanted.webhook.secret_ref is not None,
        allowed_hosts=platform.policy.notification_hosts,
        insecure=platform.policy.insecure_notifications,
        http_proxy=way_out.http_proxy,
        https_proxy=way_out.https_proxy,
        no_proxy=way_out.no_proxy or "",
        is_proxy_own=own.http_proxy is not None or own.secret_ref is not None,
    )


def _build_pod(run: Run, wanted: Notification, delivery: Delivery, platform: Platform) -> Object:
    spec = run.spec
    mounted = build_way_out(spec, platform.download)
    secret = _build_secret(wanted)
    # Kubernetes puts other variables into $(...), and JSON takes a $ either way.
    handed = delivery.model_dump_json(exclude_none=True).replace("$", "\\u0024")
    mount: Object = {"name": "notification", "mountPath": NOTIFICATION_SECRET_PATH, "readOnly": True}
    pod: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_PERIOD_S,
        "tolerations": build_tolerations(spec.scheduling.tolerations, platform.node_loss_s),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": build_pod_security(),
        "containers": [
            {
                "name": NOTIFIER_CONTAINER,
                "image": platform.notifier_image,
                "imagePullPolicy": platform.notifier_pull_policy,
                "command": ["llava-notifier"],
                "env": [{"name": ENV_DELIVERY, "value": handed}],
                "resources": RESOURCES,
                "securityContext": build_container_security(),
                "volumeMounts": [*([mount] if secret else []), *(one.mount for one in mounted)],
            }
        ],
        "volumes": [*([secret] if secret else []), *(one.volume for one in mounted)],
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    return pod


def _build_secret(wanted: Notification) -> Object | None:
    """The keys of its Secret that are sent or signed with; the kubelet waits for those that have to be there."""
    if wanted.secret is None:
        return None
    needed = [] if wanted.slack else [NOTIFICATION_KEYS["signing"]]
    needed += [NOTIFICATION_KEYS["url"]] if wanted.url is None else []
    optional = [] if wanted.slack else [NOTIFICATION_KEYS["bearer"]]
    sources: list[Object] = [{"secret": {"name": wanted.secret, "items": _list_items(needed)}}]
    if optional:
        sources.append({"secret": {"name": wanted.secret, "items": _list_items(optional), "optional": True}})
    return {"name": "notification", "projected": {"defaultMode": SECRET_MODE, "sources": sources}}


def _list_items(keys: list[str]) -> list[Object]:
    return [{"key": key, "path": key} for key in keys]
