"""The run's settings as the report lists them."""

from llava_api.run_config import RunConfig


def list_settings(config: RunConfig) -> list[tuple[str, str]]:
    """Names and values, those first that a person is likeliest to change."""
    training, generation = config.training, config.evaluation.generation
    sampling = "greedy" if generation.temperature == 0 else f"temperature {generation.temperature:g}"
    if generation.temperature > 0 and generation.top_p is not None:
        sampling += f", top-p {generation.top_p:g}"
    if generation.num_beams > 1:
        sampling += f", {generation.num_beams} beams"
    return [
        ("Dataset", f"{config.dataset.source} · {config.dataset.file} ({config.dataset.format})"),
        ("Pictures", f"made square by {'padding' if config.dataset.image_aspect_ratio == 'pad' else 'cropping'}"),
        ("Method", f"{training.method}, rank {training.lora.rank}, alpha {training.lora.alpha}, "
                   f"dropout {training.lora.dropout:g}"),
        ("Epochs", f"{training.epochs:,}"),
        ("Learning rate", f"{training.peak_learning_rate:g}, projector {training.projector_learning_rate:g}"),
        ("Schedule", f"{training.scheduler}, warm-up {training.warmup_ratio:.0%}"),
        ("Weight decay", f"{training.weight_decay:g}"),
        ("Batch", f"{training.batch.global_:,} samples: {training.batch.per_device} x {config.workers.world_size} "
                  f"processes x {config.gradient_accumulation}"),
        ("Longest sample", f"{training.max_length:,} tokens"),
        ("Precision", f"{training.precision} in training, merged to {config.merge.dtype}"),
        ("Training seed", str(training.seed)),
        ("Answers to questions", f"greedy, {generation.max_new_tokens:,} tokens at most"),
        ("Answers to prompts", f"{sampling}, seed {generation.seed}"),
    ]  # fmt: skip
