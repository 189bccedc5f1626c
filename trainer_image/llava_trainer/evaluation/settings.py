"""The run's settings as the report lists them."""

from llava_api.run_config import RunConfig
from llava_api.spec import LORA_TARGETS, Alignment, MixturePart, Retention, Training
from llava_api.text import show

Rows = list[tuple[str, str]]
_LOADED = {
    "none": "as they are", "8bit": "language model in 8 bits (LLM.int8), base and tuned alike",
    "4bit": "language model in 4 bits (NF4), base and tuned alike",
}  # fmt: skip


def list_settings(config: RunConfig, *, with_layout: bool = True) -> Rows:
    """Names and values, those first that a person is likeliest to change.

    Args:
        config: the run's.
        with_layout: tell over how many processes a batch was spread, too, which may be changed while a run is
            suspended and decides nothing.
    """
    generation = config.evaluation.generation
    sampling = "greedy" if generation.temperature == 0 else f"temperature {generation.temperature:g}"
    if generation.temperature > 0 and generation.top_p is not None:
        sampling += f", top-p {generation.top_p:g}"
    if generation.num_beams > 1:
        sampling += f", {generation.num_beams} beams"
    return [
        ("Dataset", f"{show(config.dataset.source)} · {config.dataset.file} ({config.dataset.format})"),
        *(_mixture(part) for part in config.mixture),
        *(_retention(config.evaluation.retention) if config.evaluation.retention is not None else []),
        ("Pictures", f"made square by {'padding' if config.dataset.image_aspect_ratio == 'pad' else 'cropping'}"),
        *(_alignment(config.alignment) if config.alignment else []),
        ("Method", _method(config.training, has_adapter=config.model.adapter is not None)),
        *([("Goes on from", show(config.model.adapter))] if config.model.adapter is not None else []),
        *(_training(config, with_layout=with_layout) if config.training.method != "none" else []),
        ("Longest sample", f"{config.training.max_length:,} tokens"),
        ("Precision", f"{config.training.precision} in training, merged to {config.merge.dtype}"),
        ("Training seed", str(config.training.seed)),
        ("Answers to questions", f"greedy, {generation.max_new_tokens:,} tokens at most"),
        ("Answers to prompts", f"{sampling}, seed {generation.seed}"),
        ("Models loaded", _LOADED[generation.load]),
    ]


def _retention(retention: Retention) -> Rows:
    dataset = retention.dataset
    told = f"{show(dataset.source)} · {dataset.file} ({dataset.format}), {retention.maximum_loss:g} may be lost"
    return [("Not to be forgotten", told)]


def _mixture(part: MixturePart) -> tuple[str, str]:
    dataset = part.dataset
    return (f"Mixed in, {part.share:.0%}", f"{show(dataset.source)} · {dataset.file} ({dataset.format})")


def _alignment(alignment: Alignment) -> Rows:
    captions = alignment.dataset
    return [
        ("Alignment", f"{show(captions.source)} · {captions.file} ({captions.format})"),
        ("Alignment's rate and length", f"{alignment.learning_rate:g}, {alignment.epochs:,} epochs of batches of "
                                        f"{alignment.batch.global_:,} samples"),
    ]  # fmt: skip


def _method(training: Training, *, has_adapter: bool) -> str:
    if training.method == "none" and has_adapter:
        return "none: the adapter that was given is merged"
    if training.method == "none":
        return "the projector alone, by alignment"
    told = ", projector frozen" if training.projector == "frozen" else ""
    told += ", vision tower too" if training.vision_tower.mode == "full" else ""
    if training.method == "full":
        return f"full: language model{' and projector' if training.projector == 'train' else ''}{told}"
    lora = training.lora
    scale = ", scaled by its root (rsLoRA)" if lora.rs_lora else ""
    targets = "" if set(lora.targets) == set(LORA_TARGETS) else f", on {', '.join(lora.targets)}"
    return f"{training.method}, rank {lora.rank}{scale}, alpha {lora.alpha}, dropout {lora.dropout:g}{targets}{told}"


def _training(config: RunConfig, *, with_layout: bool) -> Rows:
    training, adam = config.training, config.training.optimizer
    length = ("Epochs", f"{training.epochs:,}") if training.max_steps is None else ("Steps", f"{training.max_steps:,}")
    projector = f", projector {training.projector_learning_rate:g}" if training.projector == "train" else ""
    if training.vision_tower.mode == "full":
        projector += f", vision tower {training.vision_tower.learning_rate:g}"
    layout = f"{training.batch.per_device} x {config.workers.world_size} processes x {config.gradient_accumulation}"
    floor = f", down to {training.minimum_learning_rate:g}" if training.minimum_learning_rate else ""
    return [
        length,
        ("Learning rate", f"{training.peak_learning_rate:g}{projector}{floor}"),
        ("Schedule", f"{training.scheduler}, warm-up {training.warmup_ratio:.0%}"),
        ("AdamW", f"betas {adam.beta1:g} and {adam.beta2:g}, epsilon {adam.epsilon:g}"),
        ("Weight decay", f"{training.weight_decay:g}"),
        ("Batch", f"{training.batch.num_samples:,} samples{f': {layout}' if with_layout else ''}"),
    ]  # fmt: skip
