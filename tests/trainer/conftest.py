"""A checkpoint and its processing that tests only read, made once."""

from pathlib import Path

import pytest

from llava_trainer.data.processing import Processing, load_processing
from tests.tiny.base import make_untrained_base


@pytest.fixture(scope="session")
def toy_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "base"
    make_untrained_base(folder)
    return folder


@pytest.fixture(scope="session")
def toy_processing(toy_model_dir: Path) -> Processing:
    return load_processing(toy_model_dir, "pad")
