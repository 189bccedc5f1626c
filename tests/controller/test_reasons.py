"""The table from Kubernetes' words to reasons, and what a person is told of them."""

import pytest

from llava_api.constants import StageName
from llava_api.failures import BY_REASON, Reason
from llava_operator.deciding.reasons import explain, read_reason
from llava_operator.deciding.references import list_claims, list_references
from tests.controller.makers import make_attempt, make_run

SHORT = (
    "Unschedulable: 0/3 nodes are available: 1 Insufficient memory, 2 Insufficient nvidia.com/gpu. preemption: 0/3 "
    "nodes are available: 3 No preemption victims found for incoming pod."
)
RUN = make_run(
    model={"source": "hf://a/b", "secretRef": {"name": "hub"}},
    dataset={"source": "pvc://data/set", "format": "llava", "file": "f"},
    alignment={"dataset": {"source": "pvc://data/more", "format": "llava", "file": "f"}},
    download={"caConfigMap": "corporate", "secretRef": {"name": "proxies"}},
    storage={"storageClassName": "fast"},
)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ImagePullBackOff: Back-off pulling image", Reason.IMAGE_CANNOT_BE_PULLED),
        ("ErrImagePull: manifest unknown: not found", Reason.IMAGE_CANNOT_BE_PULLED),
        ("InvalidImageName: couldn't parse image", Reason.IMAGE_CANNOT_BE_PULLED),
        (SHORT, Reason.UNSCHEDULABLE),
        ("Unschedulable: 0/1 nodes: pod has unbound immediate PersistentVolumeClaims.", Reason.VOLUME_NOT_MOUNTED),
        ("SchedulingGated: waiting for gates", Reason.QUEUED),
        ('Unschedulable: persistentvolumeclaim "data" not found. not found', Reason.MISSING_OBJECT),
        ('FailedMount: MountVolume.SetUp failed for volume "s" : secret "hub" not found', Reason.MISSING_OBJECT),
        ('CreateContainerConfigError: configmap "corporate" not found', Reason.MISSING_OBJECT),
        ('ProvisioningFailed: storageclass.storage.k8s.io "fast" not found', Reason.MISSING_OBJECT),
        ('pods "x" is forbidden: no PriorityClass with name gold was found', Reason.MISSING_OBJECT),
        ("FailedMount: Unable to attach or mount volumes: timed out", Reason.VOLUME_NOT_MOUNTED),
        ("FailedAttachVolume: Multi-Attach error for volume", Reason.VOLUME_NOT_MOUNTED),
        ("FailedBinding: no persistent volumes available", Reason.VOLUME_NOT_MOUNTED),
        ('jobs.batch "x" is forbidden: exceeded quota: q, requested: pods=1', Reason.QUOTA_EXCEEDED),
        (
            'FailedCreate: Error creating: pods "x" is forbidden: failed quota: q: must specify cpu',
            Reason.QUOTA_EXCEEDED,
        ),
        ("FailedCreate: Error creating: pods is forbidden: maximum memory per Pod is 1Gi", Reason.REFUSED),
        ('admission webhook "w" denied the request: exceeded quota: q', Reason.REFUSED),
        ('Internal error occurred: failed calling webhook "w": secret "hub" not found', Reason.REFUSED),
        ("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", Reason.REFUSED),
        ("CreateContainerError: context deadline exceeded", Reason.CONTAINER_NOT_STARTED),
        ("ContainerCreating", None),
        ("PodInitializing", None),
        ("", None),
    ],
)
def test_reason_behind_what_kubernetes_says(said: str, reason: Reason | None) -> None:
    assert read_reason(said) is reason
    assert reason is None or BY_REASON[reason].waits


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (SHORT, "no node has enough memory, nvidia.com/gpu free: 0/3 nodes are available: 1 Insufficient memory, "
                "2 Insufficient nvidia.com/gpu."),
        ("Unschedulable: 0/1 nodes are available: 1 Insufficient cpu.",
         "no node has enough cpu free: 0/1 nodes are available: 1 Insufficient cpu."),
        ("Unschedulable: 0/1 nodes are available: 1 node(s) had untolerated taint {a: b}.",
         "Unschedulable: 0/1 nodes are available: 1 node(s) had untolerated taint {a: b}."),
        ('Unschedulable: persistentvolumeclaim "data" not found. not found',
         "PersistentVolumeClaim data is not there, and spec.dataset.source and spec.alignment.dataset.source ask for "
         "it: create it, or correct the fields"),
        ('FailedMount: MountVolume.SetUp failed for volume "secret-model" : secret "hub" not found',
         "Secret hub is not there, and spec.model.secretRef asks for it: create it, or correct the field"),
        ('FailedMount: configmap "corporate" not found',
         "ConfigMap corporate is not there, and spec.download.caConfigMap asks for it: create it, or correct the "
         "field"),
        ('ProvisioningFailed: storageclass.storage.k8s.io "fast" not found',
         "StorageClass fast is not there, and spec.storage.storageClassName asks for it: create it, or correct the "
         "field"),
        ('persistentvolumeclaim "invoices-run" not found',
         "PersistentVolumeClaim invoices-run is not there, and spec.storage asks for it: create it, or correct the "
         "field"),
        ('secret "unknown" not found', "Secret unknown is not there"),
        ("no PriorityClass with name gold was found", "PriorityClass gold is not there"),
        # Of another kind than the one that the run names so.
        ('configmap "hub" not found', "ConfigMap hub is not there"),
    ],
)  # fmt: skip
def test_what_is_short_or_missing_is_named(said: str, told: str) -> None:
    assert explain(said, tuple(list_references(RUN))) == told


def test_claims_of_a_run_come_once_each() -> None:
    assert list_claims(make_attempt(RUN, StageName.PREPARE)) == ["data", "invoices-run"]
    assert list_claims(make_attempt(make_run(), StageName.PREPARE)) == ["models", "data", "invoices-run"]
