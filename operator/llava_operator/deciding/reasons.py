"""Which reason stands behind the words in which Kubernetes says why something does not go on: one table. Pure."""

import re
from collections.abc import Iterable

from llava_api.failures import Reason
from llava_operator.deciding.references import CLAIM, CONFIG_MAP, SECRET, STORAGE_CLASS, Reference

UNBOUND = "unbound immediate PersistentVolumeClaims"
"""What the scheduler says of a claim that has no volume yet; it does not say which claim, nor why."""
NO_VOLUME = "it has no volume yet"
"""What is said of a claim of which nobody else says anything."""
_MISSING = re.compile(
    r'\b(persistentvolumeclaim|secret|configmap|serviceaccount|storageclass(?:\.storage\.k8s\.io)?)s? "([^"]{1,253})"'
    r" not found",
    re.IGNORECASE,
)
_NO_PRIORITY_CLASS = re.compile(r"no (PriorityClass) with name (\S{1,253}) was found")
_TABLE: tuple[tuple[re.Pattern[str], Reason], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        # Webhooks and policies write what they like behind this.
        (r"admission webhook \"|failed calling webhook|ValidatingAdmissionPolicy '", Reason.REFUSED),
        (r"\b(exceeded|failed) quota: ", Reason.QUOTA_EXCEEDED),
        (_MISSING.pattern, Reason.MISSING_OBJECT),
        (_NO_PRIORITY_CLASS.pattern, Reason.MISSING_OBJECT),
        (
            r"^(ErrImagePull|ImagePullBackOff|ErrImageNeverPull|InvalidImageName|ImageInspectError|RegistryUnavailable"
            r"|SignatureValidationFailed)\b",
            Reason.IMAGE_CANNOT_BE_PULLED,
        ),
        (r"^SchedulingGated\b", Reason.QUEUED),
        # Said by the scheduler; it is the volume that is short, and not a node.
        (rf"{UNBOUND}|^{NO_VOLUME}", Reason.VOLUME_NOT_MOUNTED),
        (r"^Unschedulable\b", Reason.UNSCHEDULABLE),
        (
            r"^(FailedMount|FailedMapVolume|FailedAttachVolume|ProvisioningFailed|FailedBinding)\b",
            Reason.VOLUME_NOT_MOUNTED,
        ),
        (r"^FailedCreate\b", Reason.REFUSED),
        (
            r"^(CreateContainerConfigError|CreateContainerError|RunContainerError|FailedCreatePodSandBox)\b",
            Reason.CONTAINER_NOT_STARTED,
        ),
    )
)
"""Patterns of what Kubernetes says, reason and message with a colon between them; the first that is found counts. Words
of: ResourceQuota's admission, the kubelet's container states, the scheduler's PodScheduled, Events of the Job
controller, the kubelet and the volume controllers."""
_KINDS = {
    "persistentvolumeclaim": CLAIM,
    "secret": SECRET,
    "configmap": CONFIG_MAP,
    "storageclass": STORAGE_CLASS,
    "serviceaccount": "ServiceAccount",
    "priorityclass": "PriorityClass",
}
_SHORT = re.compile(r"\bInsufficient ([A-Za-z0-9./_-]{1,253}?)(?=[.,;]?(?:\s|$))")
_PREEMPTION = re.compile(r"\s*preemption: .*$", re.DOTALL)


def read_reason(said: str) -> Reason | None:
    """The reason behind what Kubernetes says; None where the table knows none, as of what only takes its time."""
    return next((reason for pattern, reason in _TABLE if pattern.search(said)), None)


def explain(said: str, references: Iterable[Reference] = ()) -> str:
    """What Kubernetes says, for a person: what is missing by the field that asks for it, what is short by its name."""
    if read_reason(said) is Reason.MISSING_OBJECT:
        return _explain_missing(said, references)
    short = list(dict.fromkeys(_SHORT.findall(said)))
    if short:
        said = f"no node has enough {', '.join(short)} free: {said.removeprefix('Unschedulable: ')}"
    return _PREEMPTION.sub("", said)


def _explain_missing(said: str, references: Iterable[Reference]) -> str:
    found = _MISSING.search(said) or _NO_PRIORITY_CLASS.search(said)
    assert found is not None, "the table has the same patterns"
    kind, name = _KINDS[found[1].lower().partition(".")[0]], found[2]
    fields = [one.field for one in references if (one.kind, one.name) == (kind, name)]
    if not fields:
        return f"{kind} {name} is not there"
    is_plural = len(fields) > 1
    return (
        f"{kind} {name} is not there, and {' and '.join(fields)} ask{'' if is_plural else 's'} for it: create it, or "
        f"correct the field{'s' if is_plural else ''}"
    )
