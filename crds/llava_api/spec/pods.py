"""The pods of a run: resources, volume, nodes, image."""

from typing import Annotated, Literal

from pydantic import Field

from llava_api.base import Strict
from llava_api.names import MAX_REPLICAS, volume_claim_name
from llava_api.rules import rule, rules
from llava_api.spec.values import (
    LabelKey,
    LabelValue,
    ObjectName,
    Quantity,
    ResourceName,
    Resources,
    make_resources,
)


class Network(Strict):
    """How GPUs of different pods talk to each other (NCCL)."""

    interface: Annotated[
        str | None,
        Field(min_length=1, max_length=63, pattern=r"^[\^=]?[A-Za-z0-9._,-]+$",
              description="Network interface, like eth0 (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)."),
    ] = None  # fmt: skip
    hca: Annotated[
        str | None,
        Field(min_length=1, max_length=255, pattern=r"^[\^=]{0,2}[A-Za-z0-9._:,-]+$",
              description="InfiniBand or RoCE adapters, like mlx5_0,mlx5_1 (NCCL_IB_HCA); NCCL's choice if left out."),
    ] = None  # fmt: skip
    resource: Annotated[
        ResourceName | None,
        Field(
            description="Extended resource that gives a pod its adapters, like rdma/hca; one is requested a pod.",
            json_schema_extra=rules(
                # What Kubernetes calls an extended resource (IsExtendedResourceName of its API helpers).
                rule(
                    "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$') && "
                    "!self.contains('kubernetes.io/') && !self.startsWith('requests.') && self != 'nvidia.com/gpu'",
                    "must be the extended resource of a device plugin, DOMAIN/NAME like rdma/hca; cpu, memory and "
                    "others of Kubernetes belong in spec.workers.resources, GPUs in spec.workers.gpus",
                    message_expression=(
                        "'is %s, but must be the extended resource of a device plugin, DOMAIN/NAME like rdma/hca; "
                        "cpu, memory and others of Kubernetes belong in spec.workers.resources, GPUs in "
                        "spec.workers.gpus'.format([self])"
                    ),
                )
            ),
        ),
    ] = None
    debug: Annotated[Literal["WARN", "INFO", "TRACE"] | None, Field(description="What NCCL logs (NCCL_DEBUG).")] = None


class Workers(Strict):
    """The pods that train."""

    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS, description="Training pods.")] = 1
    gpus: Annotated[
        int, Field(ge=0, le=16, description="GPUs (nvidia.com/gpu) of each pod, one process each; 0 trains on the CPU.")
    ] = 1
    resources: Annotated[
        Resources,
        Field(
            description="Resources of each pod besides its GPUs and /dev/shm. A checkpoint is copied into this memory "
            "before it is written: 12 bytes for each number that is trained, over all pods (4 GB with LoRA of rank 128 "
            "on 7B, 84 GB with method full). status.plan.podMemory tells what a pod takes; a run that would go over "
            "its limit is refused before it trains."
        ),
    ] = make_resources("8", "64Gi")
    shm_size: Annotated[
        Quantity, Field(description="Size of /dev/shm, through which processes of a pod exchange data. It is memory, "
                                    "and is added to the pod's memory request and limit.")
    ] = "8Gi"  # fmt: skip
    grace_period_seconds: Annotated[
        int,
        Field(ge=15, le=3600, description="Seconds that a pod has to save a checkpoint when it is asked to stop."),
    ] = 120
    gpu_memory: Annotated[
        Quantity | None,
        Field(
            description="Memory of each GPU, like 80Gi, to check the memory plan against. Left out: the most that the "
            "labels (nvidia.com/gpu.memory) of nodes that match scheduling.nodeSelector tell of."
        ),
    ] = None
    compute_capability: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9]{1,2}\.[0-9]$",
            max_length=4,
            description='Compute capability of the GPUs, like "8.0" (in quotes: it is no number), to refuse what they '
            "cannot do. Left out: the newest that these nodes' labels (nvidia.com/gpu.compute.major, .minor) tell of.",
        ),
    ] = None
    network: Annotated[Network, Field(description="How GPUs of different pods talk to each other.")] = Network()


class Prepare(Strict):
    """The stage that checks the data. It runs on the CPU."""

    resources: Annotated[Resources, Field(description="Resources of its pod.")] = make_resources("2", "8Gi")


class Merge(Strict):
    """The stage that merges the adapter into the model. It runs on the CPU."""

    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        Field(description="Number format of the merged weights."),
    ] = "bfloat16"
    resources: Annotated[
        Resources,
        Field(
            description="Resources of its pod. Merging, and the proof that base + adapter equals merged, hold one "
            "layer of the model at a time, in fp32: 3.4Gi at most with a 7B model, 4.5Gi with 13B, of which 1Gi is the "
            "process itself. More CPUs make the proof quicker."
        ),
    ] = make_resources("4", "6Gi")


class Storage(Strict):
    """The volume that holds everything a run makes."""

    size: Annotated[
        Quantity,
        Field(
            description="Size of the volume. A checkpoint takes 12 bytes for each number that is trained, and "
            "checkpoint.keep + 1 of them are there at times: 4 GB each with lora on a 7B model, 80 GB with full. "
            "status.plan tells exactly, and a run for which too little is free is refused before it trains."
        ),
    ] = "200Gi"
    storage_class_name: Annotated[
        str | None, Field(min_length=1, max_length=253, description="StorageClass; the cluster's default if left out.")
    ] = None
    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadWriteMany"], ...],
        Field(
            min_length=1,
            max_length=2,
            description="Access modes of the volume. Left out: ReadWriteMany where workers.replicas or "
            "evaluation.workers.replicas is more than 1, else ReadWriteOnce.",
        ),
    ] | None = None  # fmt: skip
    retain: Annotated[
        Literal["Always", "OnSuccess", "Never"],
        Field(
            description="Whether the claim stays when the run is deleted: Always; OnSuccess, if the run has succeeded; "
            "Never, so that nothing of the run is left. Only people delete runs where it is Never: "
            "ttlSecondsAfterFinished is refused then."
        ),
    ] = "Never"
    existing_claim: Annotated[
        ObjectName | None,
        Field(
            description="Claim of the run's namespace to use as the run's volume. Everything of the run lies in its "
            "folder runs/UID, the results too. Files that other runs have fetched there are not fetched again, and "
            "training goes on from a checkpoint of one that trained the same (model, samples, and every setting but "
            "checkpoint, zero, maxRestarts and batch.perDevice); what is theirs stays as it is. No claim is made then, "
            "size, storageClassName, accessModes and retain say nothing, and the operator never deletes it. It can be "
            "named later only while the run is suspended as VolumeOfEarlierRun. Left out: a claim NAME-run is made.",
        ),
    ] = None

    def claim_for(self, run: str) -> str:
        """Name of the claim that a run of this name uses."""
        return self.existing_claim or volume_claim_name(run)

    def modes_for(self, replicas: int) -> tuple[str, ...]:
        """Access modes of a volume that so many pods write to at a time, which may land on different nodes."""
        return self.access_modes or (("ReadWriteMany",) if replicas > 1 else ("ReadWriteOnce",))


class Toleration(Strict):
    """A Kubernetes toleration."""

    key: Annotated[str | None, Field(max_length=317, description="Taint key; every key if left out.")] = None
    operator: Annotated[Literal["Exists", "Equal"], Field(description="How key and value are compared.")] = "Equal"
    value: Annotated[str | None, Field(max_length=63, description="Taint value.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        Field(description="Taint effect; every effect if left out."),
    ] = None
    toleration_seconds: Annotated[
        int | None, Field(ge=0, le=31_536_000, description="Seconds that a NoExecute taint is tolerated.")
    ] = None


class TopologySpread(Strict):
    """How evenly training pods are spread over nodes, zones or racks."""

    topology_key: Annotated[
        str,
        Field(
            min_length=1,
            max_length=317,
            pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
            description="Label of nodes by whose values pods are counted, like topology.kubernetes.io/zone.",
        ),
    ]
    max_skew: Annotated[
        int, Field(ge=1, le=512, description="Most pods by which one value may have more than another.")
    ] = 1
    when_unsatisfiable: Annotated[
        Literal["DoNotSchedule", "ScheduleAnyway"],
        Field(description="What becomes of a pod for which there is no such place: it waits, or it starts elsewhere."),
    ] = "DoNotSchedule"


class Scheduling(Strict):
    """Where pods may run."""

    node_selector: Annotated[
        dict[LabelKey, LabelValue],
        Field(max_length=16, description="Labels that nodes of training and evaluation pods must carry."),
    ] = {}
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=16, description="Taints that pods of every stage tolerate.")
    ] = ()
    gang_timeout_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=1500,
            description="Seconds after which training pods that have found a place give it back, if others of the same "
            "training still have none: two runs that each hold half of what both need would wait for ever. Give an "
            "autoscaler the time that it takes to make a node.",
        ),
    ] = 900
    queue_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=63,
            pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            description="Kueue's LocalQueue that lets the Jobs of every stage start; they are made suspended. Left "
            "out: none.",
        ),
    ] = None
    priority_class_name: Annotated[
        ObjectName | None,
        Field(description="PriorityClass of the pods of every stage; the cluster's default if left out."),
    ] = None
    topology_spread: Annotated[
        tuple[TopologySpread, ...],
        Field(
            max_length=4,
            description="How pods of one training are spread; they alone are counted.",
            json_schema_extra=rules(
                rule(
                    "self.all(one, self.exists_one(other, other.topologyKey == one.topologyKey && "
                    "other.whenUnsatisfiable == one.whenUnsatisfiable))",
                    "each topologyKey may stand there once with each whenUnsatisfiable: leave one of them out",
                )
            ),
        ),
    ] = ()
    service_account_name: Annotated[
        ObjectName | None,
        Field(
            description="ServiceAccount of the pods of every stage, one that the installation allows "
            "(policy.serviceAccountNames): by it a cloud tells who they are, and s3:// sources without a secretRef are "
            "fetched as its role. They get no token for the API server. Left out: default."
        ),
    ] = None


class Image(Strict):
    """The trainer image."""

    reference: Annotated[
        str | None,
        Field(min_length=1, max_length=512, description="Image reference; the operator's own default if left out."),
    ] = None
    pull_policy: Annotated[
        Literal["IfNotPresent", "Always", "Never"], Field(description="When the image is pulled.")
    ] = "IfNotPresent"


class ImagePullSecret(Strict):
    """Secret of the run's namespace with registry credentials."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the Secret.")]
