"""Programs out of Debian packages that are unpacked into the cache instead of installed.

Installing a package of a daemon would start it on a machine with a service manager, and a test wants the program alone.
apt checks the package against its signed index; from then on the manifest holds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.kept import keep, locked, verify
from tests.localcluster.paths import cache_root
from tests.localcluster.shell import environment, log, run
from tests.localcluster.tools import Tools

_TIMEOUT_S = 600


@dataclass(frozen=True)
class UnpackedPackage:
    """A Debian package and those of its programs (in /usr/bin) that are used."""

    name: str
    programs: tuple[str, ...]


PROMETHEUS = UnpackedPackage("prometheus", ("prometheus", "promtool"))
DOCKER_REGISTRY = UnpackedPackage("docker-registry", ("docker-registry",))


def _has(program: str) -> bool:
    return shutil.which(program, path=environment()["PATH"]) is not None


def require_source(package: UnpackedPackage) -> None:
    """Raise ClusterError unless the programs are on PATH, or apt can bring them."""
    if not _has("apt-get") and not all(map(_has, package.programs)):
        raise ClusterError(
            f"{' and '.join(package.programs)} are needed and there is no apt-get to take Debian's package "
            f"{package.name!r} with: install them and put them on PATH"
        )


def _download(package: UnpackedPackage, folder: Path) -> Path:
    """Let apt fetch the package into an empty folder, with a new index where the machine's names one that is gone."""
    # apt gives up its rights for the download: the folder has to be open to its own user.
    folder.chmod(0o755)
    fetch = ["apt-get", "download", "--quiet", package.name]
    what = f"downloading Debian's package {package.name!r}"
    if run(fetch, what=what, timeout_s=_TIMEOUT_S, cwd=folder, check=False).returncode != 0:
        lock = ("-o", "DPkg::Lock::Timeout=300")
        run(["apt-get", *lock, "update", "--quiet"], what="apt-get update", timeout_s=_TIMEOUT_S)
        run(fetch, what=what, timeout_s=_TIMEOUT_S, cwd=folder)
    (archive,) = folder.glob("*.deb")
    return archive


def _unpack(package: UnpackedPackage, folder: Path) -> None:
    """Unpack a package's programs aside and rename them to `folder`, replacing what is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        downloads = Path(scratch, "downloads")
        downloads.mkdir()
        archive = _download(package, downloads)
        unpacked = Path(scratch, "unpacked")
        run(["dpkg-deb", "--extract", archive, unpacked], what=f"unpacking {archive.name}", timeout_s=_TIMEOUT_S)
        keep(unpacked / "usr/bin", folder, package.programs, {"package": archive.name})
        log(f"unpacked {archive.name}")


def ensure_unpacked(package: UnpackedPackage) -> Tools:
    """Where a package's programs are, fetched first when they are missing or damaged.

    On a system without apt, those on PATH. Raises ClusterError when there are none, or the package cannot be had.
    """
    require_source(package)
    if not _has("apt-get"):
        found = (shutil.which(program, path=environment()["PATH"]) for program in package.programs)
        return Tools(tuple(dict.fromkeys(Path(program).parent for program in found if program)))
    folder = cache_root() / "tools" / f"{package.name}-debian-{os.uname().machine}"
    with locked(folder.with_suffix(".lock")):
        problem = verify(folder)
        if problem is not None:
            if folder.exists():
                log(f"{problem}: unpacking it anew")
            _unpack(package, folder)
    return Tools((folder,))
