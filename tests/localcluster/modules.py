"""Files of pinned Go modules that are no programs: what other projects define their objects by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.golang import find_go
from tests.localcluster.paths import cache_root
from tests.localcluster.shell import run


@dataclass(frozen=True)
class Module:
    """A Go module at one version; `digest` is what go.sum would say of it."""

    path: str
    version: str
    digest: str


PROMETHEUS_OPERATOR = Module(
    "github.com/prometheus-operator/prometheus-operator",
    "v0.94.0",
    "h1:VxMKzqr8Xqw5/QInNT7a3B5XInPnHqE7SD2UIdwKpRM=",
)
PROMETHEUS_OPERATOR_CRDS = "example/prometheus-operator-crd"
"""Its folder with the CRDs, a file each: monitoring.coreos.com_PLURAL.yaml."""

KSERVE = Module("github.com/kserve/kserve", "v0.17.0", "h1:IaynaBFzVQz1Xyrw5n3ncqzd5Y7L1RkO+YWvVwwtMQE=")
KSERVE_CRDS = "config/crd/full"
"""Its folder with the CRDs, a file each: serving.kserve.io_PLURAL.yaml."""


def fetch_module(module: Module) -> Path:
    """The folder with a module's files, in Go's own cache; Go verifies it there.

    Raises ClusterError when it cannot be had, or is not the one that is pinned.
    """
    what = f"fetching {module.path}@{module.version}"
    cache_root().mkdir(parents=True, exist_ok=True)
    done = run(
        [find_go().program, "mod", "download", "-json", f"{module.path}@{module.version}"],
        what=what,
        timeout_s=600,
        cwd=cache_root(),
        env={"GOFLAGS": "-mod=mod", "GOWORK": "off"},
    )
    told = json.loads(done.stdout)
    if told.get("Sum") != module.digest:
        raise ClusterError(f"{what}: its digest is {told.get('Sum')}, but {module.digest} is pinned")
    return Path(told["Dir"])
