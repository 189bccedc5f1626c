"""A checkpoint and its processing that tests only read, made once.

What needs torch is imported when it is asked for: tests of the frame and of reports run without it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llava_trainer.data.processing import Processing


@pytest.fixture(scope="session")
def toy_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny.base import make_untrained_base

    folder = tmp_path_factory.mktemp("toy") / "base"
    make_untrained_base(folder)
    return folder


@pytest.fixture(scope="session")
def toy_processing(toy_model_dir: Path) -> "Processing":
    from llava_trainer.data.processing import load_processing

    return load_processing(toy_model_dir, "pad")
