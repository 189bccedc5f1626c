"""Where the sides work: the 27 M model in a folder, and this process as the only one of a training."""

import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llava_api.run_config import RunConfig
from llava_trainer.gang.world import World, join
from tests.benchmarks.model import LORA_RANK, write_model
from tests.benchmarks.sides import LEARNING_RATE
from tests.tiny.tasks import corpus
from tests.trainer.trainings import configure, environment_of_one

PER_DEVICE = 16


@contextmanager
def workplace() -> Iterator[tuple[RunConfig, World]]:
    """the 27 M model in a folder, and this process as the only one of a training."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        root = Path(folder)
        write_model(root / "base", corpus(random.Random(0)))
        config = configure(
            root, root / "base",
            training={
                "lora": {"rank": LORA_RANK, "alpha": 2 * LORA_RANK, "dropout": 0.05}, "learningRate": LEARNING_RATE,
                "batch": {"perDevice": PER_DEVICE, "global": 64}, "maxLength": 256, "gradientCheckpointing": False,
            },
        )  # fmt: skip
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        listener.close()
        with environment_of_one(port):
            yield config, joined()


def joined() -> World:
    """Join once: DeepSpeed keeps the first process group that it sees."""
    if torch.distributed.is_initialized():
        return World(rank=0, world_size=1, device=torch.device("cpu"))
    return join("cpu")
