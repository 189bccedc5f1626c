"""Which trackers a run has asked for, and what follows the curve for them."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import httpx

from llava_api.constants import WANDB_KEYS, SecretRole
from llava_api.run_config import RunConfig
from llava_api.spec import Mlflow, Wandb
from llava_trainer.sources.credentials import read_credentials, read_key, web_headers
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.sources.network import Network, build_client, choose_proxy, read_network
from llava_trainer.sources.refusals import refused
from llava_trainer.training.tracking.follower import Follower
from llava_trainer.training.tracking.mlflow import FIELD, MlflowRun, Server
from llava_trainer.training.tracking.tensorboard import EventFile
from llava_trainer.training.tracking.wandb import FIELD as FIELD_WANDB
from llava_trainer.training.tracking.wandb import Access, WandbRun


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
        asking = partial(_open_mlflow, config, tracking.mlflow, total_steps, surroundings or Surroundings())
        followers.append(Follower("MLflow's server", asking, curve_file))
    if tracking is not None and tracking.wandb is not None:
        beginning = partial(_open_wandb, config, tracking.wandb, total_steps, surroundings or Surroundings())
        followers.append(Follower("Weights & Biases", beginning, curve_file))
    return followers


def _open_mlflow(config: RunConfig, mlflow: Mlflow, total_steps: int, around: Surroundings) -> MlflowRun:
    """Ask the server, with what its Secret and those of the way out hold now.

    Raises:
        TrackerError, TransientError, StageError: it cannot be asked.
    """
    credential = {}
    if mlflow.secret_ref is not None:
        credential = web_headers(read_credentials(around.secrets / SecretRole.TRACKING, f"{FIELD}.secretRef"))
    network = _read_network(config, around)
    # Who is on the way in clear could answer in the server's place, and a run may name a proxy of its author's. It is
    # policy.trackingHosts that says whom a run may reach.
    network = replace(network, http_proxy=None)
    with ExitStack() as stack:
        client = stack.enter_context(build_client(network))
        server = Server(client=client, url=mlflow.url, credential=credential)
        run = MlflowRun(server, config.run, mlflow.experiment, total_steps)
        run.keep_open(stack.pop_all())
        return run


def _open_wandb(config: RunConfig, wandb: Wandb, total_steps: int, around: Surroundings) -> WandbRun:
    """Begin a run on the volume, or with the key that its Secret holds now, at the server.

    Raises:
        StageError: its Secret holds no key.
        Exception: what the client raises.
    """
    folder = config.volume.wandb_dir(config.run.stage, config.run.attempt)
    if wandb.secret_ref is None:
        return WandbRun(folder, config.run, wandb, total_steps)
    (name,) = WANDB_KEYS
    key = read_key(around.secrets / SecretRole.WANDB / name, f"{FIELD_WANDB}.secretRef", name)
    if key is None:
        raise refused(f"{FIELD_WANDB}.secretRef: Secret {wandb.secret_ref.name} has no key {name}")
    network, url = _read_network(config, around), httpx.URL(wandb.url)
    access = Access(
        url=wandb.url.rstrip("/"), key=key, proxy=choose_proxy(network, url.scheme, url.host, url.port),
        ca_pem=network.ca_pem,
    )  # fmt: skip
    return WandbRun(folder, config.run, wandb, total_steps, access=access)


def _read_network(config: RunConfig, around: Surroundings) -> Network:
    return read_network(config.download, around.ca_file, around.secrets / SecretRole.DOWNLOAD, around.environ)
