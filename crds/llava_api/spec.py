"""The spec of a LlavaFineTune.

Descriptions are written for the person who writes a manifest: they become the CRD's text (``kubectl explain``) and
docs/api.md. A field stands here only if something acts on it.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from llava_api.base import Strict
from llava_api.names import MAX_REPLICAS
from llava_api.rules import fixed, rule, rules

QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

RelativePath = Annotated[
    str,
    Field(
        max_length=1024,
        json_schema_extra=rules(
            rule(
                "!self.matches('^/|(^|/)[.][.](/|$)')",
                "must be a path relative to the source, without a leading / and without .. parts",
            )
        ),
    ),
]
"""A path below a source's folder; it cannot leave it."""

PvcSource = Annotated[
    str,
    Field(
        min_length=7,
        max_length=1024,
        json_schema_extra=rules(
            rule(
                "self.matches('^pvc://[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(/.*)?$')",
                "must be pvc://CLAIM/PATH: a PersistentVolumeClaim of the run's namespace and a folder in it",
            ),
            rule("!self.matches('/[.][.](/|$)')", "must not contain .. parts: name the folder itself"),
        ),
    ),
]
"""``pvc://CLAIM/PATH``; the claim is mounted read-only and read in place."""

Quantity = Annotated[
    str,
    Field(coerce_numbers_to_str=True, pattern=QUANTITY_PATTERN, max_length=32),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 32, "minimum": 0}),
]
"""A Kubernetes quantity: 500m, 4, 16Gi."""

ResourceName = Annotated[str, StringConstraints(min_length=1, max_length=63)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]


class Resources(Strict):
    """CPU, memory and other resources of a container, as Kubernetes has them."""

    requests: Annotated[
        dict[ResourceName, Quantity],
        Field(max_length=8, description="What the scheduler sets aside. What is missing here is taken from limits."),
    ] = {}
    limits: Annotated[
        dict[ResourceName, Quantity],
        Field(
            max_length=8, description="What the container may use at most. Memory missing here is taken from requests."
        ),
    ] = {}


def _resources(cpu: str, memory: str) -> Resources:
    return Resources(requests={"cpu": cpu, "memory": memory}, limits={"memory": memory})


class Model(Strict):
    """The model to start from."""

    source: Annotated[
        PvcSource,
        Field(
            description="Folder with a LLaVA v1.5 checkpoint in hub layout (the layout of llava-hf/llava-1.5-7b-hf): "
            "pvc://CLAIM/PATH. It is mounted read-only and read in place."
        ),
    ]


class Ubiai(Strict):
    """How to read a UBIAI export with relations."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.questionLabel != self.answerLabel",
                "questionLabel and answerLabel must differ: set them to the labels of the questions and of the answers",
                field=".answerLabel",
            )
        )
    )

    question_label: Annotated[
        str, Field(min_length=1, max_length=128, description="Entity label of the spans that are questions.")
    ] = "QUESTION"
    answer_label: Annotated[
        str, Field(min_length=1, max_length=128, description="Entity label of the spans that are answers.")
    ] = "ANSWER"
    relation_label: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            description="Label of the relation that links a question to its answer, in either direction.",
        ),
    ] = "LINK"
    documents: Annotated[
        RelativePath | None,
        Field(
            description="JSON file, relative to the source, that maps each document to its picture: an object from "
            "documentName (or from the document's index in the export, counted from 0) to the picture's path below "
            "`images`. Without it, documentName itself must be that path."
        ),
    ] = None


class Validation(Strict):
    """Which samples are held out from training, and scored by evaluation."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.fraction) != has(self.file)",
                "set either fraction or file: a share of the samples to hold out, or a file with the held-out samples",
            )
        )
    )

    fraction: Annotated[
        float | None,
        Field(
            gt=0,
            le=0.5,
            description="Share of the question-answer pairs to hold out. All of one picture stay together, so the "
            "share is met as nearly as that allows.",
        ),
    ] = None
    file: Annotated[
        RelativePath | None,
        Field(description="File with the held-out samples, relative to the source, in the same format as `file`."),
    ] = None


class Dataset(Strict):
    """The pictures, questions and answers to learn from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.format == 'ubiai' || !has(self.ubiai)",
                "ubiai is only read with format ubiai: remove it or set format to ubiai",
                field=".ubiai",
            )
        )
    )

    source: Annotated[
        PvcSource,
        Field(description="Folder with the dataset: pvc://CLAIM/PATH. It is mounted read-only and read in place."),
    ]
    format: Annotated[
        Literal["llava", "ubiai"],
        Field(
            description="`llava`: a JSON list of {id, image, conversations: [{from: human|gpt, value}]}. "
            "`ubiai`: a UBIAI JSON export with relations between questions and answers."
        ),
    ]
    file: Annotated[RelativePath, Field(min_length=1, description="The dataset's JSON file, relative to the source.")]
    images: Annotated[
        RelativePath, Field(description="Folder that picture paths are relative to, itself relative to the source.")
    ] = ""
    image_aspect_ratio: Annotated[
        Literal["pad", "square"],
        Field(
            description="`pad` makes a picture square by adding a border of the vision tower's mean colour (LLaVA "
            "v1.5's recipe); `square` cuts the centre out."
        ),
    ] = "pad"
    ubiai: Annotated[Ubiai | None, Field(description="How to read a UBIAI export. Only with format ubiai.")] = None
    validation: Annotated[Validation, Field(description="Which samples are held out.")] = Validation(fraction=0.05)


class Lora(Strict):
    """Low-rank adaptation of the language model's q, k, v, o, gate, up and down projections."""

    rank: Annotated[int, Field(ge=1, le=1024, description="Rank of the update matrices.")] = 128
    alpha: Annotated[int, Field(ge=1, le=4096, description="Scale: the update is multiplied by alpha / rank.")] = 256
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="Share of the adapter's inputs that is dropped in training; 0 = off.")
    ] = 0.05


class Batch(Strict):
    """Batch sizes, in samples."""

    per_device: Annotated[
        int, Field(ge=1, le=1024, description="Samples that one training process holds at a time.")
    ] = 8
    global_: Annotated[
        int,
        Field(
            alias="global",
            ge=1,
            le=65536,
            description="Samples of one optimiser step over all processes; gradient accumulation follows from it. "
            "Must be a multiple of perDevice x workers.replicas x max(workers.gpus, 1).",
        ),
    ] = 128


class Checkpoint(Strict):
    """When training saves its state."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000, description="Optimiser steps between two checkpoints.")] = 200
    keep: Annotated[int, Field(ge=1, le=100, description="Newest checkpoints kept; older ones are deleted.")] = 2


class Training(Strict):
    """How to train. The defaults are LLaVA v1.5's LoRA recipe."""

    method: Annotated[
        Literal["lora"],
        Field(description="`lora`: adapters on the language model; the projector is trained whole, the vision tower "
                          "stays frozen."),
    ] = "lora"  # fmt: skip
    lora: Annotated[Lora, Field(description="The adapter's shape.")] = Lora()
    epochs: Annotated[int, Field(ge=1, le=1000, description="Times that training goes through the dataset.")] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1, description="Peak learning rate of the adapter.")] = 2.0e-4
    projector_learning_rate: Annotated[float, Field(gt=0, le=1, description="Peak learning rate of the projector.")] = (
        2.0e-5
    )
    weight_decay: Annotated[float, Field(ge=0, le=1, description="AdamW's decoupled weight decay; 0 = off.")] = 0.0
    warmup_ratio: Annotated[
        float, Field(ge=0, le=1, description="Share of the steps over which the learning rate rises from 0; 0 = off.")
    ] = 0.03
    scheduler: Annotated[
        Literal["cosine", "linear", "constant"],
        Field(description="Course of the learning rate after warm-up: down to 0 by a cosine or a line, or constant."),
    ] = "cosine"
    max_length: Annotated[
        int,
        Field(
            ge=64,
            le=131072,
            description="Longest sample in tokens, image tokens included; longer ones lose their end and are counted "
            "in the dataset report.",
        ),
    ] = 2048
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        Field(description="Number format of training; `auto` is bf16 on GPUs and fp32 on a CPU."),
    ] = "auto"
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of every random choice.")] = 42
    batch: Annotated[Batch, Field(description="Batch sizes.")] = Batch()
    gradient_checkpointing: Annotated[
        bool,
        Field(description="Compute activations again in the backward pass instead of keeping them: much less memory "
                          "for about a third more time."),
    ] = True  # fmt: skip
    attention: Annotated[
        Literal["auto", "flash_attention_2", "sdpa", "eager"],
        Field(description="Attention implementation; `auto` is flash_attention_2 where it is installed, else sdpa."),
    ] = "auto"
    checkpoint: Annotated[Checkpoint, Field(description="When training saves its state.")] = Checkpoint()


class Workers(Strict):
    """The pods that train."""

    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS, description="Training pods.")] = 1
    gpus: Annotated[
        int, Field(ge=0, le=16, description="GPUs (nvidia.com/gpu) of each pod, one process each; 0 trains on the CPU.")
    ] = 1
    resources: Annotated[Resources, Field(description="Resources of each pod besides its GPUs.")] = _resources(
        "8", "64Gi"
    )
    shm_size: Annotated[
        Quantity, Field(description="Size of /dev/shm, through which processes of a pod exchange data; it is memory "
                                    "and counts against the memory limit.")
    ] = "8Gi"  # fmt: skip
    grace_period_seconds: Annotated[
        int,
        Field(ge=15, le=3600, description="Seconds that a pod has to save a checkpoint when it is asked to stop."),
    ] = 120


class Prepare(Strict):
    """The stage that checks the data. It runs on the CPU."""

    resources: Annotated[Resources, Field(description="Resources of its pod.")] = _resources("2", "8Gi")


class Merge(Strict):
    """The stage that merges the adapter into the model. It runs on the CPU."""

    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        Field(description="Number format of the merged weights."),
    ] = "bfloat16"
    resources: Annotated[
        Resources, Field(description="Resources of its pod. The proof that base + adapter equals merged holds one "
                                     "model at a time in fp32: about 30Gi for a 7B model.")
    ] = _resources("4", "40Gi")  # fmt: skip


class Prompt(Strict):
    """A question for both models whose answers appear in the report."""

    image: Annotated[RelativePath | None, Field(description="Picture to ask about, relative to dataset.images.")] = None
    text: Annotated[str, Field(min_length=1, max_length=4096, description="The question.")]


class Generation(Strict):
    """How answers to the prompts are generated. Scores always use greedy decoding, so that they repeat exactly."""

    temperature: Annotated[
        float, Field(ge=0, le=10, description="Sampling temperature of answers to prompts; 0 = greedy.")
    ] = 0.2
    top_p: Annotated[
        float | None, Field(gt=0, le=1, description="Nucleus sampling: smallest share of probability kept; null = off.")
    ] = None
    num_beams: Annotated[int, Field(ge=1, le=16, description="Beams of beam search; 1 = off.")] = 1
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of sampling.")] = 0
    max_new_tokens: Annotated[
        int, Field(ge=1, le=8192, description="Most tokens of one answer, for prompts and scores.")
    ] = 512


class Evaluation(Strict):
    """The stage that compares the tuned model with its base."""

    prompts: Annotated[
        tuple[Prompt, ...], Field(max_length=32, description="Questions for both models, shown in the report.")
    ] = ()
    generation: Annotated[Generation, Field(description="How answers are generated.")] = Generation()
    training_samples: Annotated[
        int,
        Field(
            ge=0,
            le=100_000,
            description="Training samples that are scored as well (shown apart from the held-out score), to tell "
            "learning by heart from learning; 0 = off.",
        ),
    ] = 0
    gpus: Annotated[int, Field(ge=0, le=1, description="GPUs of the evaluation pod; 0 evaluates on the CPU.")] = 1
    resources: Annotated[Resources, Field(description="Resources of its pod besides its GPU.")] = _resources(
        "4", "40Gi"
    )


class Storage(Strict):
    """The volume that holds everything a run makes. It is deleted with the run."""

    size: Annotated[Quantity, Field(description="Size of the volume.")] = "200Gi"
    storage_class_name: Annotated[
        str | None, Field(min_length=1, max_length=253, description="StorageClass; the cluster's default if left out.")
    ] = None
    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadWriteMany"], ...],
        Field(
            min_length=1,
            max_length=2,
            description="Access modes of the volume. Left out: ReadWriteMany with replicas > 1, else ReadWriteOnce.",
        ),
    ] | None = None  # fmt: skip


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


class Scheduling(Strict):
    """Where pods may run."""

    node_selector: Annotated[
        dict[LabelKey, LabelValue],
        Field(max_length=16, description="Labels that nodes of training and evaluation pods must carry."),
    ] = {}
    tolerations: Annotated[
        tuple[Toleration, ...], Field(max_length=16, description="Taints that pods of every stage tolerate.")
    ] = ()


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


_BATCH_UNIT = "self.training.batch.perDevice * self.workers.replicas * (self.workers.gpus > 0 ? self.workers.gpus : 1)"

_CONSISTENT: tuple[dict[str, Any], ...] = (
    rule(
        f"self.training.batch.global % ({_BATCH_UNIT}) == 0",
        "spec.training.batch.global must be a multiple of perDevice x workers.replicas x max(workers.gpus, 1)",
        message_expression=(
            "'spec.training.batch.global is %d but must be a multiple of %d, which is perDevice x workers.replicas x "
            f"max(workers.gpus, 1)'.format([self.training.batch.global, {_BATCH_UNIT}])"
        ),
        field=".training.batch.global",
    ),
    rule(
        "self.workers.replicas == 1 || !has(self.storage.accessModes) || "
        "self.storage.accessModes.exists(mode, mode == 'ReadWriteMany')",
        "spec.storage.accessModes must contain ReadWriteMany when spec.workers.replicas is greater than 1: every "
        "training pod writes to the volume",
        field=".storage.accessModes",
    ),
    rule(
        "self.workers.gpus > 0 || self.training.precision != 'bf16'",
        "spec.training.precision bf16 needs spec.workers.gpus of at least 1: use auto or fp32 on a CPU",
        field=".training.precision",
    ),
    rule(
        "self.workers.gpus > 0 || self.training.attention != 'flash_attention_2'",
        "spec.training.attention flash_attention_2 needs spec.workers.gpus of at least 1: use auto or sdpa on a CPU",
        field=".training.attention",
    ),
)

FIXED_FIELDS = (
    "model", "dataset", "prepare", "training", "workers", "merge", "evaluation", "storage", "scheduling", "image",
    "imagePullSecrets",
)  # fmt: skip


class Spec(Strict):
    """What to train, on what, and how. Fixed from creation."""

    model_config = ConfigDict(json_schema_extra=rules(*_CONSISTENT, *fixed(*FIXED_FIELDS)))

    model: Annotated[Model, Field(description="The model to start from.")]
    dataset: Annotated[Dataset, Field(description="The pictures, questions and answers to learn from.")]
    prepare: Annotated[Prepare, Field(description="The stage that checks the data, before a GPU is taken.")] = Prepare()
    training: Annotated[Training, Field(description="How to train. Defaults: LLaVA v1.5's LoRA recipe.")] = Training()
    workers: Annotated[Workers, Field(description="The pods that train.")] = Workers()
    merge: Annotated[Merge, Field(description="The stage that merges the adapter into the model.")] = Merge()
    evaluation: Annotated[Evaluation, Field(description="The stage that compares the tuned model with its base.")] = (
        Evaluation()
    )
    storage: Annotated[
        Storage, Field(description="The volume that holds everything a run makes. It is deleted with the run.")
    ] = Storage()
    scheduling: Annotated[Scheduling, Field(description="Where pods may run.")] = Scheduling()
    image: Annotated[Image, Field(description="The trainer image.")] = Image()
    image_pull_secrets: Annotated[
        tuple[ImagePullSecret, ...], Field(max_length=8, description="Secrets with registry credentials.")
    ] = ()
