"""What a test here needs besides a GPU. What is missing is listed with the reason; with CI=true it is an error.

Named by a marker instead of skipping inside a test, so that it is known before anything runs: a tier with half its
tests left out does not pass for a whole one.
"""

import os

import pytest
import torch

from llava_trainer.model.flash import has_flash_attention


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_flash_attn: needs flash-attn besides a GPU")
    config.addinivalue_line("markers", "needs_gpus(number): needs several GPUs")


def find_missing(item: pytest.Item, *, num_gpus: int, has_flash: bool) -> str | None:
    """What a test needs and this machine lacks; None if nothing."""
    if item.get_closest_marker("needs_flash_attn") and not has_flash:
        return "flash-attn is not installed (trainer_image/build-flash-attn.sh)"
    needed = item.get_closest_marker("needs_gpus")
    if needed and num_gpus < needed.args[0]:
        return f"{needed.args[0]} GPUs are needed, {num_gpus} found"
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out, or refuse, what lacks something; without any GPU the whole tier has said so already."""
    here = [item for item in items if item.get_closest_marker("gpu")]
    if not here or not torch.cuda.is_available():
        return
    missing: list[str] = []
    for item in here:
        reason = find_missing(item, num_gpus=torch.cuda.device_count(), has_flash=has_flash_attention())
        if reason is not None:
            missing.append(f"{item.nodeid}: {reason}")
            item.add_marker(pytest.mark.skip(reason=reason))
    if missing and os.environ.get("CI") == "true":
        raise pytest.UsageError("with CI=true every GPU test has to run, but:\n" + "\n".join(missing))
