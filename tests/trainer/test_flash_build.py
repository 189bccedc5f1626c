"""flash-attn is not built for architectures that it does not know: it would say nothing, and run nowhere."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "trainer_image" / "build-flash-attn.sh"


def build(folder: Path, architectures: str) -> subprocess.CompletedProcess[str]:
    """Without apt-get and everything else that it takes: it gets no further than checking what it was asked for."""
    tools = folder / "bin"
    tools.mkdir()
    bash, dirname = shutil.which("bash"), shutil.which("dirname")
    assert bash
    assert dirname
    (tools / "dirname").symlink_to(dirname)
    environ = {"PATH": str(tools), "FLASH_ATTN_CUDA_ARCHS": architectures, "LC_ALL": os.environ.get("LC_ALL", "C")}
    command = [bash, str(SCRIPT), str(folder / "site")]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("architectures", "unknown"), [("86", "86"), ("80;89", "89"), ("80 90", "80 90"), ("", ""), ("80;;90", "")]
)
def test_an_architecture_that_flash_attn_does_not_know_is_refused(tmp_path: Path, architectures: str, unknown: str):
    ended = build(tmp_path, architectures)
    assert ended.returncode == 1
    assert f"FLASH_ATTN_ARCHS has '{unknown}'; flash-attn knows 80 " in ended.stderr


@pytest.mark.parametrize("architectures", ["80", "80;90;100;120"])
def test_those_that_it_knows_are_built_for(tmp_path: Path, architectures: str):
    ended = build(tmp_path, architectures)
    assert ended.returncode == 127
    assert "apt-get" in ended.stderr
