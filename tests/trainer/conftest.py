"""A checkpoint and its processor that tests only read, made once.

What needs torch is imported when it is asked for: tests of the frame and of reports run without it.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port

if TYPE_CHECKING:
    from llava_trainer.data.processor import Processor
    from llava_trainer.gang.world import World
    from tests.trainer.servers.authority import Authority

# As the command line does for every stage.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(autouse=True)
def torchs_own_linear() -> Iterator[None]:
    """DeepSpeed's ZeRO-3 replaces torch's linear layer for the rest of the process, which other tests would measure."""
    yield
    zero = sys.modules.get("deepspeed.runtime.zero.partition_parameters")
    replaced = getattr(zero.InsertPostInitMethodToModuleSubClasses, "linear_bk", None) if zero else None
    if replaced is not None:
        from torch.nn import functional

        functional.linear = replaced


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> "Authority":
    from tests.trainer.servers.authority import Authority

    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def toy_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny.base import make_untrained_base

    folder = tmp_path_factory.mktemp("toy") / "base"
    make_untrained_base(folder)
    return folder


@pytest.fixture(scope="session")
def toy_processor(toy_model_dir: Path) -> "Processor":
    from llava_trainer.data.processor import load_processor

    return load_processor(toy_model_dir, "pad")


@pytest.fixture(scope="session")
def merged_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run as it stands when evaluation begins; whoever writes to it copies it."""
    from llava_trainer.stages import merge
    from tests.trainer.runs import Recorder, make_run

    root = tmp_path_factory.mktemp("merged") / "run"
    config = make_run(root)
    with Recorder(config) as reporter:
        merge.run(config, reporter)
    return root


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    return free_port()


@pytest.fixture(scope="session")
def process_group() -> Iterator[tuple["World", int]]:
    """This process as the only one of a training, and its port.

    Once a session: DeepSpeed keeps the first process group that it sees, whatever becomes of it.
    """
    import torch.distributed as dist

    from llava_trainer.gang.world import join
    from tests.trainer.trainings import environment_of_one

    port = free_port()
    with environment_of_one(port):
        world = join("cpu")
    yield world, port
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def world(process_group: tuple["World", int]) -> Iterator["World"]:
    """The only process of a training, with its environment for as long as the module's tests run."""
    from tests.trainer.trainings import environment_of_one

    joined, port = process_group
    with environment_of_one(port):
        yield joined
