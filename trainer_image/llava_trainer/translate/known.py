"""Every flag of LLaVA's train.py: its own, and those of transformers' TrainingArguments at the time (4.31 to 4.37).

Read off haotian-liu/LLaVA's ModelArguments, DataArguments and TrainingArguments. A flag says how its value is read and
what the original does where it is left out; one without an effect here says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["str", "int", "float", "bool"]


@dataclass(frozen=True)
class Flag:
    """One flag."""

    kind: Kind
    default: str | int | float | bool | None = None
    no_effect: str = ""
    """Why nothing comes of it here; empty where something does."""
    taken: tuple[str, ...] = ()
    """Values of which something comes all the same."""


_EVERY_STEP = "every step is in the run's curve, in kubectl get and in the metrics"
_AFTERWARDS = "the evaluation stage scores the held-out samples after training"
_LOADER = "pictures are read and encoded ahead of the step as it is"
_PROCESSES = "the operator starts the processes and tells them where the others are"
_PRECISION = "precision is bf16 or fp32 all through"
_ADAM = "the optimiser is torch's own AdamW, its constants are training.optimizer"
_DEEPSPEED = "processes share out work by DeepSpeed's ZeRO: training.zero"
_PUBLISH = "the results stay on the run's volume"
_DEBUGGING = "a switch for debugging"
_VOLUME = "everything is on the run's volume"
_RESUME = "an interrupted run finds its newest valid checkpoint by itself"
_NOT_OFFERED = "not offered"

MODEL_ARGUMENTS: dict[str, Flag] = {
    "model_name_or_path": Flag("str", "facebook/opt-125m"),
    "version": Flag("str", "v0"),
    "freeze_backbone": Flag("bool", False),
    "tune_mm_mlp_adapter": Flag("bool", False),
    "vision_tower": Flag("str"),
    "mm_vision_select_layer": Flag("int", -1),
    "pretrain_mm_mlp_adapter": Flag("str"),
    "mm_projector_type": Flag("str", "linear"),
    "mm_use_im_start_end": Flag("bool", False),
    "mm_use_im_patch_token": Flag("bool", True),
    "mm_patch_merge_type": Flag("str", "flat", "it belongs to LLaVA-NeXT"),
    "mm_vision_select_feature": Flag("str", "patch"),
}

DATA_ARGUMENTS: dict[str, Flag] = {
    "data_path": Flag("str"),
    "lazy_preprocess": Flag("bool", False, "samples are always read when they are needed"),
    "is_multimodal": Flag("bool", False, "LLaVA sets it itself from --vision_tower"),
    "image_folder": Flag("str"),
    "image_aspect_ratio": Flag("str", "square"),
    "image_grid_pinpoints": Flag("str", None, "it belongs to LLaVA-NeXT"),
}

LLAVA_TRAINING_ARGUMENTS: dict[str, Flag] = {
    "cache_dir": Flag("str", None, _VOLUME),
    "optim": Flag("str", "adamw_torch"),
    "remove_unused_columns": Flag("bool", False, "there are no columns"),
    "freeze_mm_mlp_adapter": Flag("bool", False),
    "mpt_attn_impl": Flag("str", "triton", "it belongs to MPT models"),
    "model_max_length": Flag("int", 512),
    "double_quant": Flag("bool", True),
    "quant_type": Flag("str", "nf4"),
    "bits": Flag("int", 16),
    "lora_enable": Flag("bool", False),
    "lora_r": Flag("int", 64),
    "lora_alpha": Flag("int", 16),
    "lora_dropout": Flag("float", 0.05),
    "lora_weight_path": Flag("str", "", "LLaVA's code never reads it"),
    "lora_bias": Flag("str", "none"),
    "mm_projector_lr": Flag("float"),
    "group_by_modality_length": Flag("bool", False),
}

TRAINER_ARGUMENTS: dict[str, Flag] = {
    "output_dir": Flag("str"),
    "per_device_train_batch_size": Flag("int", 8),
    "per_gpu_train_batch_size": Flag("int"),
    "gradient_accumulation_steps": Flag("int", 1),
    "learning_rate": Flag("float", 5e-5),
    "weight_decay": Flag("float", 0.0),
    "num_train_epochs": Flag("float", 3.0),
    "max_steps": Flag("int", -1),
    "lr_scheduler_type": Flag("str", "linear"),
    "warmup_ratio": Flag("float", 0.0),
    "warmup_steps": Flag("int", 0),
    "max_grad_norm": Flag("float", 1.0),
    "save_strategy": Flag("str", "steps"),
    "save_steps": Flag("float", 500),
    "save_total_limit": Flag("int"),
    "seed": Flag("int", 42),
    "bf16": Flag("bool", False),
    "fp16": Flag("bool", False),
    "gradient_checkpointing": Flag("bool", False),
    "group_by_length": Flag("bool", False),
    "deepspeed": Flag("str"),
    "overwrite_output_dir": Flag("bool", False, "every run has a volume of its own"),
    "do_train": Flag("bool", False, "LLaVA always trains"),
    "do_eval": Flag("bool", False, _AFTERWARDS),
    "do_predict": Flag("bool", False, _AFTERWARDS),
    "evaluation_strategy": Flag("str", "no", _AFTERWARDS),
    "eval_strategy": Flag("str", "no", _AFTERWARDS),
    "eval_steps": Flag("float", None, _AFTERWARDS),
    "eval_delay": Flag("float", 0, _AFTERWARDS),
    "eval_accumulation_steps": Flag("int", None, _AFTERWARDS),
    "per_device_eval_batch_size": Flag("int", 8, _AFTERWARDS),
    "per_gpu_eval_batch_size": Flag("int", None, _AFTERWARDS),
    "prediction_loss_only": Flag("bool", False, _AFTERWARDS),
    "load_best_model_at_end": Flag("bool", False, _AFTERWARDS),
    "metric_for_best_model": Flag("str", None, _AFTERWARDS),
    "greater_is_better": Flag("bool", None, _AFTERWARDS),
    "include_inputs_for_metrics": Flag("bool", False, _AFTERWARDS),
    "label_names": Flag("str", None, _AFTERWARDS),
    "past_index": Flag("int", -1, _AFTERWARDS),
    "adam_beta1": Flag("float", 0.9),
    "adam_beta2": Flag("float", 0.999),
    "adam_epsilon": Flag("float", 1e-8),
    "adafactor": Flag("bool", False, _ADAM),
    "optim_args": Flag("str", None, _ADAM),
    "lr_scheduler_kwargs": Flag("str", None, _NOT_OFFERED),
    "label_smoothing_factor": Flag("float", 0.0, _NOT_OFFERED),
    "neftune_noise_alpha": Flag("float", None, _NOT_OFFERED),
    "torch_compile": Flag("bool", False, _NOT_OFFERED),
    "torch_compile_backend": Flag("str", None, _NOT_OFFERED),
    "torch_compile_mode": Flag("str", None, _NOT_OFFERED),
    "torchdynamo": Flag("str", None, _NOT_OFFERED),
    "jit_mode_eval": Flag("bool", False, _NOT_OFFERED),
    "use_ipex": Flag("bool", False, _NOT_OFFERED),
    "auto_find_batch_size": Flag("bool", False, "the memory plan says before training what fits: status.plan"),
    "full_determinism": Flag("bool", False, "every random choice follows from training.seed"),
    "data_seed": Flag("int", None, "every random choice follows from training.seed"),
    "tf32": Flag("bool", None, "bf16 multiplies in bf16; what stays in fp32 is small"),
    "fp16_opt_level": Flag("str", "O1", _PRECISION),
    "fp16_backend": Flag("str", "auto", _PRECISION),
    "half_precision_backend": Flag("str", "auto", _PRECISION),
    "bf16_full_eval": Flag("bool", False, _PRECISION),
    "fp16_full_eval": Flag("bool", False, _PRECISION),
    "logging_dir": Flag("str", None, _EVERY_STEP),
    "logging_strategy": Flag("str", "steps", _EVERY_STEP),
    "logging_first_step": Flag("bool", False, _EVERY_STEP),
    "logging_steps": Flag("float", 500, _EVERY_STEP),
    "logging_nan_inf_filter": Flag("bool", True, "a loss that is not finite ends the run with a reason"),
    "include_tokens_per_second": Flag("bool", False, _EVERY_STEP),
    "include_num_input_tokens_seen": Flag("bool", False, _EVERY_STEP),
    "report_to": Flag("str", "all", _EVERY_STEP, taken=("tensorboard", "all")),
    "run_name": Flag("str", None, "a run is named by metadata.name"),
    "disable_tqdm": Flag("bool", False, _EVERY_STEP),
    "log_level": Flag("str", "passive", _DEBUGGING),
    "log_level_replica": Flag("str", "warning", _DEBUGGING),
    "log_on_each_node": Flag("bool", True, "the log of every process is kept on the run's volume"),
    "debug": Flag("str", "", _DEBUGGING),
    "skip_memory_metrics": Flag("bool", True, _DEBUGGING),
    "tpu_metrics_debug": Flag("bool", False, _DEBUGGING),
    "save_safetensors": Flag("bool", True, "everything is saved as safetensors"),
    "save_on_each_node": Flag("bool", False, _VOLUME),
    "save_only_model": Flag("bool", False, _RESUME),
    "resume_from_checkpoint": Flag("str", None, _RESUME),
    "ignore_data_skip": Flag("bool", False, _RESUME),
    "dataloader_num_workers": Flag("int", 0, _LOADER),
    "dataloader_pin_memory": Flag("bool", True, _LOADER),
    "dataloader_persistent_workers": Flag("bool", False, _LOADER),
    "dataloader_prefetch_factor": Flag("int", None, _LOADER),
    "dataloader_drop_last": Flag("bool", False, "the last batch of an epoch holds what is left, and repeats nothing"),
    "dispatch_batches": Flag("bool", None, _LOADER),
    "split_batches": Flag("bool", False, _LOADER),
    "accelerator_config": Flag("str", None, _LOADER),
    "length_column_name": Flag("str", "length", _LOADER),
    "gradient_checkpointing_kwargs": Flag("str", None, "checkpointing is not re-entrant"),
    "no_cuda": Flag("bool", False, "workers.gpus says what trains"),
    "use_cpu": Flag("bool", False, "workers.gpus says what trains"),
    "use_mps_device": Flag("bool", False, "workers.gpus says what trains"),
    "tpu_num_cores": Flag("int", None, "workers.gpus says what trains"),
    "local_rank": Flag("int", -1, _PROCESSES),
    "ddp_backend": Flag("str", None, _PROCESSES),
    "ddp_timeout": Flag("int", 1800, "a process that stops answering is noticed by a watchdog"),
    "ddp_find_unused_parameters": Flag("bool", None, _DEEPSPEED),
    "ddp_bucket_cap_mb": Flag("int", None, _DEEPSPEED),
    "ddp_broadcast_buffers": Flag("bool", None, _DEEPSPEED),
    "fsdp": Flag("str", "", _DEEPSPEED),
    "fsdp_config": Flag("str", None, _DEEPSPEED),
    "fsdp_min_num_params": Flag("int", 0, _DEEPSPEED),
    "fsdp_transformer_layer_cls_to_wrap": Flag("str", None, _DEEPSPEED),
    "sharded_ddp": Flag("str", "", _DEEPSPEED),
    "mp_parameters": Flag("str", "", _DEEPSPEED),
    "xpu_backend": Flag("str", None, _PROCESSES),
    "ray_scope": Flag("str", "last", _NOT_OFFERED),
    "use_legacy_prediction_loop": Flag("bool", False, _AFTERWARDS),
    "push_to_hub": Flag("bool", False, _PUBLISH),
    "push_to_hub_model_id": Flag("str", None, _PUBLISH),
    "push_to_hub_organization": Flag("str", None, _PUBLISH),
    "push_to_hub_token": Flag("str", None, _PUBLISH),
    "hub_model_id": Flag("str", None, _PUBLISH),
    "hub_strategy": Flag("str", "every_save", _PUBLISH),
    "hub_token": Flag("str", None, _PUBLISH),
    "hub_private_repo": Flag("bool", False, _PUBLISH),
    "hub_always_push": Flag("bool", False, _PUBLISH),
}

FLAGS: Mapping[str, Flag] = MODEL_ARGUMENTS | DATA_ARGUMENTS | TRAINER_ARGUMENTS | LLAVA_TRAINING_ARGUMENTS
SECRET_FLAGS = frozenset({"hub_token", "push_to_hub_token"})
"""Whose values are never repeated."""
