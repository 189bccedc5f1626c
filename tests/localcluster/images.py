"""Building the base image and the project's two images with buildah.

Every image is named by the hash of all that goes into it, so what is unchanged is not built again, and
additionally `:dev`. Its dependencies are a layer of their own: an edit of the code makes a small layer anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster import host
from tests.localcluster.errors import ClusterError
from tests.localcluster.indexes import index_mounts
from tests.localcluster.paths import REPOSITORY
from tests.localcluster.shell import log, run
from tests.localcluster.store import buildah_command, find_disposable_images, find_image, storage_root
from tests.localcluster.teardown import unmount_below

IMAGE_NAMES = ("base", "operator", "trainer")
_SUITE = "bookworm"
_BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates")
# Documentation and package lists: a third of the base, and nothing in a container reads them.
_BASE_LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt")
_BUILD_TIMEOUT_S = 3000
# An edit of the lock makes a layer of gigabytes anew: the ones before it have to go.
_NUM_KEPT = 3
_BIG_LAYER_BYTES = 500_000_000


@dataclass(frozen=True)
class ProjectImage:
    """One of the project's images; `sources` are the files and folders of the repository that make it."""

    name: str
    repository: str
    dockerfile: str
    sources: tuple[str, ...]


_SOURCES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "crds", "operator", "trainer_image")
OPERATOR = ProjectImage("operator", "localhost/llava-finetune-operator", "operator/Dockerfile", _SOURCES)
TRAINER = ProjectImage("trainer", "localhost/llava-finetune-trainer", "trainer_image/Dockerfile", _SOURCES)
_PROJECT_IMAGES = {image.name: image for image in (OPERATOR, TRAINER)}
_BASE_REPOSITORY = "localhost/llava-localcluster/base"


def _buildah(*arguments: str | Path, what: str, timeout_s: float = 300, cwd: Path | None = None) -> str:
    return run([*buildah_command(), *arguments], what=what, timeout_s=timeout_s, cwd=cwd).stdout.strip()


def source_files(root: Path, sources: Iterable[str]) -> list[Path]:
    """The files of a build, sorted; compiled Python and the Dockerfiles of other images are not among them."""
    found: set[Path] = set()
    for source in sources:
        path = root / source
        if path.is_dir():
            found.update(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            found.add(path)
        else:
            raise ClusterError(f"{path} is needed to build the image and does not exist")
    return sorted(file for file in found if "__pycache__" not in file.parts and file.name != "Dockerfile")


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:12]


def image_tag(image: ProjectImage, base: str, root: Path = REPOSITORY) -> str:
    """The tag for exactly these sources, Dockerfile and base."""
    files = [root / image.dockerfile, *source_files(root, image.sources)]
    named = [part for file in files for part in (str(file.relative_to(root)).encode(), file.read_bytes())]
    return _hash([base.encode(), *named])


def base_reference() -> str:
    """The name of the base image: the same packages make the same name."""
    recipe = json.dumps([_SUITE, _BASE_PACKAGES, _BASE_LEFT_OUT, os.uname().machine])
    return f"{_BASE_REPOSITORY}:{_hash([recipe.encode()])}"


def _debian_mirror() -> list[str]:
    """The mirror that this machine's apt uses for the suite, nothing when it uses none: debootstrap knows one."""
    if shutil.which("apt-get") is None:
        return []
    listing = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages"],
        what="reading apt's sources",
        timeout_s=30,
        check=False,
    )
    for line in listing.stdout.splitlines():
        uri, codename, component = [*line.split(), "", "", ""][:3]
        if codename == _SUITE and component == "main":
            return [uri]
    return []


def build_base() -> str:
    """Make the base image from Debian packages unless it is there; returns its name."""
    reference = base_reference()
    if find_image(reference) is not None:
        return reference
    started = time.monotonic()
    log(f"making {reference} from Debian packages (once; about a minute)")
    storage_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage_root().parent, prefix=".base-") as scratch:
        root = Path(scratch, "root")
        run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(_BASE_PACKAGES)}", _SUITE, root,
             *_debian_mirror()],
            what="making a Debian root file system",
            timeout_s=1200,
        )  # fmt: skip
        for folder in _BASE_LEFT_OUT:
            shutil.rmtree(root / folder, ignore_errors=True)
        for lists in (root / "var/lib/apt/lists").iterdir():
            shutil.rmtree(lists) if lists.is_dir() else lists.unlink()
        container = _buildah("from", "scratch", what="starting the base image")
        _buildah("copy", "--quiet", container, root, "/", what="filling the base image")
        _buildah("config", "--env", "LANG=C.UTF-8", "--cmd", "python3", container, what="describing the base image")
        _buildah("commit", "--quiet", "--rm", container, reference, what="writing the base image")
    log(f"made the base image in {time.monotonic() - started:.0f} s")
    return reference


def _build(image: ProjectImage, reference: str, base: str, root: Path) -> None:
    started = time.monotonic()
    log(f"building {reference}")
    with tempfile.TemporaryDirectory() as scratch:
        _buildah(
            "bud", "--isolation", "chroot", "--network", "host", "--layers", "--force-rm", "--pull-never",
            "--build-arg", f"BASE_IMAGE={base}", *index_mounts(Path(scratch)),
            "--file", root / image.dockerfile, "--tag", reference, root,
            what=f"building {reference}",
            timeout_s=_BUILD_TIMEOUT_S,
            cwd=root,
        )  # fmt: skip
    log(f"built {reference} in {time.monotonic() - started:.0f} s")


def build_project_image(image: ProjectImage, base: str, root: Path = REPOSITORY) -> str:
    """Build one of the project's images unless it is there, tag it `:dev` as well; returns its name."""
    reference = f"{image.repository}:{image_tag(image, base, root)}"
    if find_image(reference) is None:
        _build(image, reference, base, root)
    else:
        log(f"{reference} is there already")
    _buildah("tag", reference, f"{image.repository}:dev", what=f"tagging {reference}")
    return reference


def build_images(names: Sequence[str] = IMAGE_NAMES, root: Path = REPOSITORY) -> list[str]:
    """Build the images by name (base, operator, trainer), always with the base that they need.

    Returns their references in that order. Raises ClusterError when a build fails.
    """
    host.require_root()
    host.require_packages(host.IMAGE_PACKAGES)
    base = build_base()
    built = {"base": base}
    for name, image in _PROJECT_IMAGES.items():
        if name in names:
            built[name] = build_project_image(image, base, root)
    drop_old_images()
    return [built[name] for name in IMAGE_NAMES if name in names]


def drop_old_images() -> None:
    """Delete images that newer ones have replaced; one that a build or a container uses right now stays."""
    for identifier in find_disposable_images(num_kept=_NUM_KEPT, big_bytes=_BIG_LAYER_BYTES):
        command = [*buildah_command(), "rmi", "--force", identifier]
        run(command, what=f"deleting old image {identifier}", timeout_s=300, check=False)


def purge(cache: Path) -> None:
    """Delete all built tools and images."""
    if storage_root().exists():
        # Layers may be mounted: buildah's own command unmounts them first, all but the storage onto itself.
        _buildah("rm", "--all", what="removing buildah's containers")
        unmount_below(storage_root())
    shutil.rmtree(cache, ignore_errors=True)
    log(f"deleted {cache}")
