"""The cluster's programs, built once from pinned Go modules and checked at every use.

Each folder under tools/ is a Go module that pins one program or several together with every module they
need (go.sum). The result lies in the cache under a key of all that went into it, beside a manifest of
SHA-256 sums: a program that differs from its manifest is built anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.golang import GoToolchain, find_go
from tests.localcluster.kept import keep, locked, sha256, verify
from tests.localcluster.paths import TOOL_SOURCES, cache_root
from tests.localcluster.shell import log, run

KUBERNETES_VERSION = "v1.34.10"
# Building Kubernetes takes five minutes on two cores; a slower machine gets some patience.
_BUILD_TIMEOUT_S = 3600
_VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


@dataclass(frozen=True)
class ToolSet:
    """One Go module under tools/ and the programs that are built from it in one go.

    `programs` maps the name of a program to its package; `linker` sets version strings.
    """

    name: str
    programs: dict[str, str]
    linker: tuple[str, ...] = ()

    @property
    def source(self) -> Path:
        """The folder that holds the module's go.mod and go.sum."""
        return TOOL_SOURCES / self.name


def _kubernetes_linker_flags() -> tuple[str, ...]:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    return tuple(f"-X {package}.{key}={value}" for package in _VERSION_PACKAGES for key, value in values.items())


# CoreDNS and the provisioner share the Kubernetes module, so that its packages are compiled once.
KUBERNETES = ToolSet(
    "kubernetes",
    {
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
        "kubelet": "k8s.io/kubernetes/cmd/kubelet",
        "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
        "kubectl": "k8s.io/kubernetes/cmd/kubectl",
        "provisioner": "./provisioner",
        "coredns": "./coredns",
        "pause": "./pause",
    },
    _kubernetes_linker_flags(),
)
HELM = ToolSet(
    "helm",
    {"helm": "helm.sh/helm/v3/cmd/helm"},
    ("-X helm.sh/helm/v3/internal/version.version=v3.21.4",),
)
KUSTOMIZE = ToolSet("kustomize", {"kustomize": "sigs.k8s.io/kustomize/kustomize/v5"})
KSTATUS = ToolSet("kstatus", {"kstatus": "."})
"""What Flux and Helm judge an object's status by; no part of a cluster, and built by the test that asks it."""
KUBE_STATE_METRICS = ToolSet("kube-state-metrics", {"kube-state-metrics": "k8s.io/kube-state-metrics/v2"})
"""What dashboards read of pods; no part of a cluster either."""
VERSITYGW = ToolSet("versitygw", {"versitygw": "github.com/versity/versitygw/cmd/versitygw"})
"""An S3 server on a folder, to which tests publish; no part of a cluster."""
ALL_TOOL_SETS = (KUBERNETES, HELM, KUSTOMIZE)


@dataclass(frozen=True)
class Tools:
    """Where the built programs are."""

    folders: tuple[Path, ...]

    def path(self, program: str) -> Path:
        """The file of a program; raises ClusterError when no tool set that was asked for builds it."""
        for folder in self.folders:
            if (folder / program).is_file():
                return folder / program
        raise ClusterError(f"program {program!r} is not among the built ones in {', '.join(map(str, self.folders))}")

    def search_path(self) -> str:
        """A value for PATH with the built programs first."""
        return os.pathsep.join([*map(str, self.folders), os.environ.get("PATH", os.defpath)])


def content_key(tool_set: ToolSet, go_version: str, architecture: str) -> str:
    """A name for exactly these programs: it changes with every input of the build."""
    digest = hashlib.sha256()
    inputs = sorted(path for path in tool_set.source.rglob("*") if path.suffix in (".mod", ".sum", ".go"))
    if not inputs:
        raise ClusterError(f"{tool_set.source} holds no go.mod: the checkout is incomplete")
    for path in inputs:
        digest.update(f"{path.relative_to(tool_set.source)}\0{sha256(path)}\0".encode())
    digest.update(json.dumps([tool_set.programs, tool_set.linker, go_version, architecture]).encode())
    return digest.hexdigest()[:16]


def _build_cache_lock() -> Path:
    return cache_root() / "tools" / "go-build.lock"


def build_environment() -> dict[str, str]:
    """What makes the result independent of the machine's own Go settings.

    The compiler's cache is ours, so that it can be dropped after the build without harm to other projects.
    """
    return {
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
        "GOWORK": "off",
        "GOCACHE": str(cache_root() / "go-build"),
        # The compiler's own garbage collector: a sixth less processor time for a few hundred megabytes.
        "GOGC": "400",
    }


def _build(tool_set: ToolSet, go: GoToolchain, folder: Path) -> None:
    """Build a tool set aside and rename it to `folder`, replacing what is there."""
    started = time.monotonic()
    log(f"building {', '.join(tool_set.programs)} with {go.version} (once; this takes minutes)")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        built = Path(scratch, "bin")
        built.mkdir()
        run(
            [go.program, "build", "-ldflags", " ".join(["-s", "-w", *tool_set.linker]),
             "-o", f"{built}/", *tool_set.programs.values()],
            what=f"building the {tool_set.name} programs",
            timeout_s=_BUILD_TIMEOUT_S,
            cwd=tool_set.source,
            env=build_environment(),
        )  # fmt: skip
        # A module's last path element may be its major version: go names the program after the one before.
        keep(built, folder, tool_set.programs, {"go": go.version})
    log(f"built {tool_set.name} in {time.monotonic() - started:.0f} s")


def ensure_tool_set(tool_set: ToolSet, go: GoToolchain) -> Path:
    """The folder with a tool set's programs, built first when they are missing or damaged."""
    key = content_key(tool_set, go.version, os.uname().machine)
    folder = cache_root() / "tools" / f"{tool_set.name}-{key}"
    with locked(folder.with_suffix(".lock")):
        problem = verify(folder)
        if problem is not None:
            if folder.exists():
                log(f"{problem}: building it anew")
            with locked(_build_cache_lock(), fcntl.LOCK_SH):
                _build(tool_set, go, folder)
    return folder


def ensure_tools(tool_sets: tuple[ToolSet, ...] = ALL_TOOL_SETS) -> Tools:
    """Build what is missing of the tool sets and return where the programs are.

    Raises ClusterError when there is no Go toolchain or a build fails.
    """
    go = find_go()
    tools = Tools(tuple(ensure_tool_set(tool_set, go) for tool_set in tool_sets))
    _drop_build_cache()
    return tools


def _drop_build_cache() -> None:
    """Delete the compiler's cache: gigabytes that pinned programs never need again."""
    cache = cache_root() / "go-build"
    if not cache.exists():
        return
    try:
        with locked(_build_cache_lock(), fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(cache, ignore_errors=True)
    except BlockingIOError:
        return  # another build uses it, and will drop it
