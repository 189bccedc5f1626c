"""Rules between the parts of a spec: what the API server refuses at ``kubectl apply``, naming field and fix."""

from typing import Any

from llava_api.rules import rule
from llava_api.spec.mixture import MAX_SHARE

_PROCESSES = "self.workers.replicas * (self.workers.gpus > 0 ? self.workers.gpus : 1)"
_BATCH_UNIT = f"self.training.batch.perDevice * {_PROCESSES}"
_CAPABILITY_UNKNOWN = "self.workers.gpus == 0 || !has(self.workers.computeCapability)"
_PEAK_LEARNING_RATE = (
    "(has(self.training.learningRate) ? self.training.learningRate : self.training.method == 'full' ? 2.0e-5 : 2.0e-4)"
)
_ALIGNMENT_UNIT = f"self.alignment.batch.perDevice * {_PROCESSES}"

_NO_MIXTURE = "!has(self.mixture) || self.mixture.size() == 0"


CONSISTENT: tuple[dict[str, Any], ...] = (
    rule(
        f"type(self.training.batch.global) != int || self.training.batch.global % ({_BATCH_UNIT}) == 0",
        "spec.training.batch.global must be a multiple of perDevice x workers.replicas x max(workers.gpus, 1), or auto",
        message_expression=(
            "'spec.training.batch.global is %d but must be a multiple of %d, which is perDevice x workers.replicas x "
            f"max(workers.gpus, 1)'.format([self.training.batch.global, {_BATCH_UNIT}])"
        ),
        field=".training.batch.global",
    ),
    rule(
        "self.workers.replicas == 1 && self.evaluation.workers.replicas == 1 || !has(self.storage.accessModes) || "
        "self.storage.accessModes.exists(mode, mode == 'ReadWriteMany')",
        "spec.storage.accessModes must contain ReadWriteMany when spec.workers.replicas or "
        "spec.evaluation.workers.replicas is greater than 1: every one of these pods writes to the volume",
        field=".storage.accessModes",
    ),
    rule(
        "!has(self.ttlSecondsAfterFinished) || has(self.storage.existingClaim) || self.storage.retain != 'Never'",
        "spec.ttlSecondsAfterFinished needs spec.storage.retain Always or OnSuccess, or spec.storage.existingClaim: "
        "with Never the timer would delete the only copy of the model",
        field=".ttlSecondsAfterFinished",
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
    rule(
        f"{_CAPABILITY_UNKNOWN} || double(self.workers.computeCapability) >= 7.5",
        "spec.workers.computeCapability must be at least 7.5 (Turing): PyTorch in the trainer image is built for none "
        "that is older",
        field=".workers.computeCapability",
    ),
    rule(
        f"{_CAPABILITY_UNKNOWN} || double(self.workers.computeCapability) >= 8.0 || self.training.precision == 'fp32'",
        "spec.training.precision must be fp32 with spec.workers.computeCapability below 8.0: bf16, which auto means on "
        "GPUs, needs 8.0",
        field=".training.precision",
    ),
    rule(
        f"{_CAPABILITY_UNKNOWN} || double(self.workers.computeCapability) >= 8.0 || "
        "self.training.attention != 'flash_attention_2'",
        "spec.training.attention flash_attention_2 needs spec.workers.computeCapability 8.0 or more: use auto or sdpa",
        field=".training.attention",
    ),
    rule(
        "self.training.method != 'qlora' || self.training.zero.stage != 3",
        "spec.training.method qlora does not go with spec.training.zero.stage 3: quantised weights cannot be "
        "partitioned; use stage 2",
        field=".training.zero.stage",
    ),
    rule(
        "self.training.method == 'qlora' || !has(self.training.quantization)",
        "spec.training.quantization is only read with method qlora: remove it or set method to qlora",
        field=".training.quantization",
    ),
    rule(
        "has(self.training.validation) || !has(self.training.keepBest)",
        "spec.training.keepBest needs spec.training.validation: set validation.everySteps to say how often is looked",
        field=".training.keepBest",
    ),
    rule(
        "has(self.training.validation) || !has(self.training.earlyStopping)",
        "spec.training.earlyStopping needs spec.training.validation: set validation.everySteps to say how often is "
        "looked",
        field=".training.earlyStopping",
    ),
    rule(
        "self.training.method != 'none' || !has(self.training.validation)",
        "spec.training.validation is only read where something is trained after alignment: remove it or set method",
        field=".training.validation",
    ),
    rule(
        "self.training.method != 'none' || self.training.projector == 'train'",
        "spec.training.projector frozen is only read where something is trained after alignment, which trains the "
        "projector: remove it or set method",
        field=".training.projector",
    ),
    rule(
        "self.training.method != 'none' || self.training.visionTower.mode == 'frozen'",
        "spec.training.visionTower.mode full is only read where something is trained after alignment, in which the "
        "tower stays frozen: remove it or set method",
        field=".training.visionTower",
    ),
    rule(
        "self.training.method != 'none' || !has(self.training.maxSteps)",
        "spec.training.maxSteps is only read where something is trained after alignment, which goes by "
        "alignment.epochs: remove it or set method",
        field=".training.maxSteps",
    ),
    rule(
        "self.training.minimumLearningRate == 0.0 || self.training.scheduler != 'constant'",
        "spec.training.minimumLearningRate is not read with scheduler constant, which never falls: remove it or set "
        "scheduler to cosine or linear",
        field=".training.minimumLearningRate",
    ),
    rule(
        f"self.training.minimumLearningRate <= {_PEAK_LEARNING_RATE}",
        "spec.training.minimumLearningRate must be at most spec.training.learningRate, which is 2e-4 where it is left "
        "out, and 2e-5 with method full",
        field=".training.minimumLearningRate",
    ),
    rule(
        "!has(self.training.validation) || !has(self.training.validation.answers) || self.training.zero.stage != 3",
        "spec.training.validation.answers does not go with spec.training.zero.stage 3: use stage 2 or remove answers",
        field=".training.validation.answers",
    ),
    rule(
        "!self.training.zero.offload.optimizer || self.training.zero.stage >= 1",
        "spec.training.zero.offload.optimizer needs spec.training.zero.stage 1 or more: set stage to 2",
        field=".training.zero.offload.optimizer",
    ),
    rule(
        "!self.training.zero.offload.parameters || self.training.zero.stage == 3",
        "spec.training.zero.offload.parameters needs spec.training.zero.stage 3",
        field=".training.zero.offload.parameters",
    ),
    rule(
        "!has(self.model.languageModel) || has(self.model.projector) || has(self.alignment)",
        "spec.model.languageModel needs spec.alignment, or spec.model.projector with one that is aligned: a fresh "
        "projector must be aligned before anything else",
        field=".alignment",
    ),
    rule(
        "!has(self.alignment) || self.alignment.freshProjector || "
        "!(has(self.model.source) || has(self.model.projector))",
        "spec.alignment would damage the projector that spec.model brings: set spec.alignment.freshProjector to throw "
        "it away and begin with a new one, or leave spec.alignment out",
        field=".alignment.freshProjector",
    ),
    rule(
        "!has(self.publish) || self.publish.what == 'merged' || self.training.method in ['lora', 'qlora']",
        "spec.publish.what adapter or both needs spec.training.method lora or qlora, which train one: use merged",
        field=".publish.what",
    ),
    rule(
        "self.training.method != 'none' || has(self.alignment) || has(self.model.adapter)",
        "spec.training.method none needs spec.alignment, or spec.model.adapter to merge: there would be nothing to do",
        field=".training.method",
    ),
    rule(
        "!has(self.model.adapter) || self.training.method != 'full'",
        "spec.model.adapter does not go with spec.training.method full, which trains no adapter: merge it first (with "
        "method none), and name what that has made in spec.model.source",
        field=".model.adapter",
    ),
    rule(
        "!has(self.model.adapter) || !has(self.alignment)",
        "spec.model.adapter does not go with spec.alignment: the adapter was trained with a projector that is aligned, "
        "and another one would not fit it; remove one of them",
        field=".model.adapter",
    ),
    rule(
        "!has(self.alignment) || !has(self.alignment.dataset.validation.file)",
        "spec.alignment.dataset.validation.file is not read: alignment holds nothing out, since no stage scores "
        "captions; remove it",
        field=".alignment.dataset.validation.file",
    ),
    rule(
        f"!has(self.alignment) || self.alignment.batch.global % ({_ALIGNMENT_UNIT}) == 0",
        "spec.alignment.batch.global must be a multiple of perDevice x workers.replicas x max(workers.gpus, 1)",
        message_expression=(
            "'spec.alignment.batch.global is %d but must be a multiple of %d, which is perDevice x workers.replicas x "
            f"max(workers.gpus, 1)'.format([self.alignment.batch.global, {_ALIGNMENT_UNIT}])"
        ),
        field=".alignment.batch.global",
    ),
    rule(
        "!has(self.evaluation.retention) || !has(self.evaluation.retention.dataset.validation.file)",
        "spec.evaluation.retention.dataset.validation.file is not read: all of dataset.file is asked; remove it",
        field=".evaluation.retention.dataset.validation.file",
    ),
    rule(
        "!has(self.evaluation.retention) || "
        "self.evaluation.retention.dataset.imageAspectRatio == self.dataset.imageAspectRatio",
        "spec.evaluation.retention.dataset.imageAspectRatio must be that of spec.dataset: a model is to see all "
        "pictures made square in the same way",
        field=".evaluation.retention.dataset.imageAspectRatio",
    ),
    rule(
        # What 0.33 + 0.33 + 0.33 comes to depends on rounding.
        f"{_NO_MIXTURE} || self.mixture.map(part, part.share).sum() <= {MAX_SHARE} + 0.000001",
        f"the shares of spec.mixture must come to at most {MAX_SHARE} together: the rest of an epoch is spec.dataset",
        field=".mixture",
    ),
    rule(
        f"{_NO_MIXTURE} || self.training.method != 'none'",
        "spec.mixture is only read where something is trained after alignment: remove it or set spec.training.method",
        field=".mixture",
    ),
    rule(
        f"{_NO_MIXTURE} || self.mixture.all(part, !has(part.dataset.validation.file))",
        "spec.mixture[].dataset.validation.file is not read: only spec.dataset is held out and scored; remove it",
        field=".mixture",
    ),
    rule(
        f"{_NO_MIXTURE} || self.mixture.all(part, part.dataset.imageAspectRatio == self.dataset.imageAspectRatio)",
        "spec.mixture[].dataset.imageAspectRatio must be that of spec.dataset: a model is to see all pictures made "
        "square in the same way",
        field=".mixture",
    ),
)
