"""Which trackers a run has asked for, and what follows the curve for them."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from llava_api.constants import SecretRole
from llava_api.run_config import RunConfig
from llava_api.spec import Mlflow
from llava_trainer.sources.credentials import read_credentials, web_headers
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.sources.network import build_client, read_network
from llava_trainer.training.tracking.follower import Follower
from llava_trainer.training.tracking.mlflow import FIELD, MlflowRun, Server
from llava_trainer.training.tracking.tensorboard import EventFile


def make_followers(config: RunConfig, total_steps: int, surroundings: Surroundings | None = None) -> list[Follower]:
    """One for each tracker; to be started when the attempt's curve has been opened.

    Args:
        config: of the run.
        total_steps: that the run may come to.
        surroundings: of the pod.
    """
    tracking = config.training.tracking
    curve_file = config.volume.history_file(config.run.stage, config.run.attempt)
    followers = []
    if tracking is not None and tracking.tensorboard is not None:
        folder = config.volume.tensorboard_dir(config.run.stage, config.run.attempt)
        followers.append(Follower("TensorBoard's event file", partial(EventFile, folder), curve_file))
    if tracking is not None and tracking.mlflow is not None:
        opening = partial(_open_mlflow, config, tracking.mlflow, total_steps, surroundings or Surroundings())
        followers.append(Follower("MLflow's server", opening, curve_file))
    return followers


def _open_mlflow(config: RunConfig, mlflow: Mlflow, total_steps: int, around: Surroundings) -> MlflowRun:
    """Ask the server, with what its Secret and those of the way out hold now.

    Raises:
        TrackerError, TransientError, StageError: it cannot be asked.
    """
    credential = {}
    if mlflow.secret_ref is not None:
        credential = web_headers(read_credentials(around.secrets / SecretRole.TRACKING, f"{FIELD}.secretRef"))
    network = read_network(config.download, around.ca_file, around.secrets / SecretRole.DOWNLOAD, around.environ)
    # Who is on the way in clear could answer in the server's place, and a run may name a proxy of its author's. It is
    # policy.trackingHosts that says whom a run may reach.
    network = replace(network, http_proxy=None)
    with ExitStack() as stack:
        client = stack.enter_context(build_client(network))
        server = Server(client=client, url=mlflow.url, credential=credential)
        run = MlflowRun(server, config.run, mlflow.experiment, total_steps)
        run.keep_open(stack.pop_all())
        return run
