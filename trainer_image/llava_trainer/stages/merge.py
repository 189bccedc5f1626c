"""The merge stage: base and what was trained become one checkpoint, which is proven before it gets its name.

What was trained is an adapter, or the weights of language model and projector (method full), or the projector alone
(method none); from here on there is no difference.
"""

import logging
from functools import partial

from llava_api.report import MergeNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.processor import load_processor, save_processor
from llava_trainer.files import begin_folder, publish_folder, sha256_folder
from llava_trainer.host_memory import peak_resident_bytes, resident_bytes
from llava_trainer.merging.changes import read_changes
from llava_trainer.merging.folder import write_config
from llava_trainer.merging.proof import load_reference, proof_batches, prove_merge
from llava_trainer.merging.recipes import merge_weights, torch_dtype
from llava_trainer.outcome import StageOutput
from llava_trainer.reporting import Reporter

logger = logging.getLogger(__name__)


def run(config: RunConfig, reporter: Reporter) -> StageOutput:
    """Merge what the run trained into its base.

    Progress counts every tensor twice: once written, once compared.

    Raises:
        StageError: base and what was trained do not fit together, or the proof fails; no merged model is left then.
    """
    volume = config.volume
    processor = load_processor(config.model_dir, config.dataset.image_aspect_ratio)
    changes = read_changes(config)
    aside = begin_folder(volume.merged_dir)
    resident_before = resident_bytes()
    merged = merge_weights(
        config.model_dir,
        changes,
        aside,
        torch_dtype(config.merge.dtype),
        on_tensor=lambda done, total: reporter.update(done, 2 * total, message="writing"),
    )
    peak = peak_resident_bytes() - resident_before
    logger.info(
        "%d tensors written, %d of them changed by training; %.0f MB of memory at most",
        merged.num_tensors, merged.num_merged, peak / 1e6,
    )  # fmt: skip
    write_config(config.model_dir, aside, config.merge)
    save_processor(processor, aside)
    proof = prove_merge(
        partial(load_reference, config),
        aside,
        proof_batches(config, processor),
        on_tensor=lambda done: reporter.update(
            merged.num_tensors + done, 2 * merged.num_tensors, message="comparing with what was trained"
        ),
    )
    logger.info(
        "proven on %d samples: %d tensors equal, logits of what was trained and of the merged model "
        "differ by %.3g at most in fp32; rounding to %s moves logits by %.3g at most",
        proof.num_samples, proof.num_tensors, proof.max_logit_difference, config.merge.dtype,
        proof.max_rounding_difference,
    )  # fmt: skip
    reporter.fence.check()
    publish_folder(volume.merged_dir)
    return StageOutput(
        numbers=MergeNumbers(
            tensors_merged=merged.num_merged,
            max_logit_difference=proof.max_logit_difference,
            max_rounding_difference=proof.max_rounding_difference,
            peak_memory_bytes=peak,
        ),
        digests={"merged": sha256_folder(volume.merged_dir)},
    )
