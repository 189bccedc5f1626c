"""Progress of a stage whose pods each do a part of it: what all of them have reported, as one report. Pure."""

from llava_api.report import MAX_SIZE
from llava_api.status import Progress, ShardProgress


def add_shard(before: Progress | None, said: Progress, index: int, num_shards: int) -> Progress:
    """The progress of all pods, with what one of them has just reported.

    Args:
        before: the newest of all of them; None, or of another attempt, where there is none.
        said: what the pod has reported of its own part.
        index: its completion index, below ``num_shards``.
        num_shards: pods of the attempt; with one, its report is that of the stage.

    Returns:
        Its report, with steps of all parts and the time until the last of them is done. Parts that nothing is known of
        count as long as the others on average: they are dealt out evenly.
    """
    if num_shards == 1:
        return said
    is_same = before is not None and (before.stage, before.attempt) == (said.stage, said.attempt)
    known = {shard.index: shard for shard in before.shards if shard.index < num_shards} if before and is_same else {}
    known[index] = ShardProgress(
        index=index, step=said.step, total_steps=said.total_steps, eta_seconds=said.eta_seconds
    )
    shards = tuple(known[one] for one in sorted(known))
    unfinished = [shard for shard in shards if not 0 < shard.total_steps <= shard.step]
    etas = [shard.eta_seconds for shard in unfinished if shard.eta_seconds is not None]
    is_known = len(shards) == num_shards and len(etas) == len(unfinished)
    total = sum(shard.total_steps for shard in shards) * num_shards // len(shards)
    return said.model_copy(
        update={
            "shards": shards,
            "step": min(sum(shard.step for shard in shards), MAX_SIZE),
            "total_steps": min(total, MAX_SIZE) if all(shard.total_steps for shard in shards) else 0,
            "eta_seconds": max(etas, default=0) if is_known else None,
        }
    )
