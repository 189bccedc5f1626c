"""Which trackers a run has asked for, and what follows the curve for them."""

from functools import partial

from llava_api.run_config import RunConfig
from llava_trainer.training.tracking.follower import Follower
from llava_trainer.training.tracking.tensorboard import EventFile


def make_followers(config: RunConfig) -> list[Follower]:
    """One for each tracker; to be entered when the attempt's curve has been opened."""
    tracking = config.training.tracking
    curve_file = config.volume.history_file(config.run.stage, config.run.attempt)
    followers = []
    if tracking is not None and tracking.tensorboard is not None:
        folder = config.volume.tensorboard_dir(config.run.stage, config.run.attempt)
        followers.append(Follower("TensorBoard's event file", partial(EventFile, folder), curve_file))
    return followers
