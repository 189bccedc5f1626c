"""The merge stage: base and what was trained become one checkpoint, which is proven before it gets its name.

What was trained is an adapter, or the weights of language model and projector (method full), or the projector alone
(method none); from here on there is no difference.
"""

import logging

from llava_api.report import MergeNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.processor import load_processor, save_processor
from llava_trainer.errors import StageError
from llava_trainer.files import aside_of, publish_folder
from llava_trainer.host_memory import peak_resident_bytes, resident_bytes, return_freed_memory
from llava_trainer.merging.changes import Changes, read_changes
from llava_trainer.merging.folder import write_config
from llava_trainer.merging.learned import check_learned
from llava_trainer.merging.manifest import Origin, digest_plan, find_origin, write_manifest
from llava_trainer.merging.proof import Proof, prove_merge
from llava_trainer.merging.recipes import plan_merge, torch_dtype
from llava_trainer.merging.reference import find_reference
from llava_trainer.merging.resuming import RECORD, begin_shards, record_shards
from llava_trainer.merging.samples import proof_batches
from llava_trainer.outcome import StageOutput
from llava_trainer.reporting import Reporter
from llava_trainer.tensors.writing import MAX_SHARD_BYTES, plan_shards, write_shards

logger = logging.getLogger(__name__)


def run(config: RunConfig, reporter: Reporter, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> StageOutput:
    """Merge what the run trained into its base.

    Progress counts every tensor twice: once written, once compared.

    Args:
        config: the run's.
        reporter: told of progress.
        max_shard_bytes: where to begin the next file.

    Raises:
        StageError: base and what was trained do not fit together, or the proof fails; no merged model is left then.
    """
    volume = config.volume
    return_freed_memory()
    resident_before = resident_bytes()
    processor = load_processor(config.model_dir, config.dataset.image_aspect_ratio)
    changes = read_changes(config)
    if config.training.method != "none":
        check_learned(config.model_dir, changes)
    origin = find_origin(config)
    digests = _write_weights(config, changes, origin, reporter, max_shard_bytes)
    aside = aside_of(volume.merged_dir)
    write_config(config.model_dir, aside, config.merge)
    save_processor(processor, aside)
    num_tensors = len(plan_merge(config.model_dir, changes, torch_dtype(config.merge.dtype)))
    try:
        proof = prove_merge(
            find_reference(config),
            aside,
            proof_batches(config, processor),
            on_tensor=lambda done: reporter.update(
                num_tensors + done, 2 * num_tensors, message="comparing with what was trained"
            ),
        )
    except StageError:
        # What is wrong must not be taken over as whole.
        (aside / RECORD).unlink()
        raise
    (aside / RECORD).unlink()
    peak = peak_resident_bytes() - resident_before
    _tell(proof, config, peak)
    digest = write_manifest(aside, origin, digests)
    reporter.fence.check()
    publish_folder(volume.merged_dir)
    return StageOutput(
        numbers=MergeNumbers(
            tensors_merged=len(changes.pairs) + len(changes.replaced),
            max_logit_difference=proof.max_logit_difference,
            max_rounding_difference=proof.max_rounding_difference,
            mean_kl_divergence=proof.mean_kl_divergence,
            peak_memory_bytes=peak,
        ),
        digests={"merged": digest},
    )


def _write_weights(
    config: RunConfig, changes: Changes, origin: Origin, reporter: Reporter, max_shard_bytes: int
) -> dict[str, str]:
    """Write the merged tensors aside, but for shards that an earlier attempt has left whole; digests of the files."""
    recipes = plan_merge(config.model_dir, changes, torch_dtype(config.merge.dtype))
    shards = plan_shards(recipes, max_shard_bytes)
    merged_dir = config.volume.merged_dir
    aside = aside_of(merged_dir)
    made_from = digest_plan(origin, config.model_dir, shards)
    whole = begin_shards(merged_dir, made_from)
    if whole:
        logger.info("%d of %d shards are there already, and verified", len(whole), len(shards))
    written = dict(whole)

    def keep(name: str, digest: str) -> None:
        written[name] = digest
        record_shards(aside, made_from, written)

    digests = write_shards(
        aside,
        shards,
        whole=whole,
        on_tensor=lambda done, total: reporter.update(done, 2 * total, message="writing"),
        on_shard=keep,
    )
    logger.info(
        "%d tensors in %d files, %d of them changed by training",
        len(recipes), len(shards), len(changes.pairs) + len(changes.replaced),
    )  # fmt: skip
    return digests


def _tell(proof: Proof, config: RunConfig, peak: int) -> None:
    logger.info(
        "proven on %d positions of %d samples: %d tensors equal, all but %d of them to the bit; logits of what was "
        "trained and of the merged model differ by %.3g at most in fp32; rounding to %s moves logits by %.3g at most, "
        "KL divergence %.3g nats on average and %.3g at most; %.0f MB of memory at most",
        proof.num_positions, proof.num_samples, proof.num_tensors, proof.num_varying, proof.max_logit_difference,
        config.merge.dtype, proof.max_rounding_difference, proof.mean_kl_divergence, proof.max_kl_divergence,
        peak / 1e6,
    )  # fmt: skip
