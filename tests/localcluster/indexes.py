"""Handing the machine's own package-index settings to an image build, without writing them into the image.

A machine behind a mirror or with a certificate authority of its own configures pip by files and environment
variables. A build sees neither: they are passed as read-only mounts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def pip_settings() -> dict[str, str]:
    """What `pip config list` says, by the setting's last name; later sources win, as in pip."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=False
    )
    settings: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, separator, value = line.partition("=")
        if separator:
            settings[name.rpartition(".")[2]] = value.strip().strip("'")
    return settings


def pip_configuration(settings: Mapping[str, str]) -> str:
    """A pip.conf with the settings that name an index; local paths mean nothing inside a build."""
    names = ("index-url", "extra-index-url", "trusted-host", "timeout")
    lines = [f"{name} = {' '.join(settings[name].split())}" for name in names if name in settings]
    return "\n".join(["[global]", "disable-pip-version-check = true", *lines]) + "\n"


def uv_configuration(settings: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """A uv.toml with the same index as pip unless uv's own variables name another."""
    lines = ["native-tls = true"]
    default = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or settings.get("index-url")
    if default:
        lines.append(f"index-url = {json.dumps(default)}")
    extra = (environment.get("UV_EXTRA_INDEX_URL") or settings.get("extra-index-url") or "").split()
    if extra:
        lines.append(f"extra-index-url = {json.dumps(extra)}")
    return "\n".join(lines) + "\n"


def index_mounts(folder: Path) -> list[str]:
    """Options for `buildah bud` that mount the settings, which are written into `folder`."""
    settings = pip_settings()
    (folder / "pip.conf").write_text(pip_configuration(settings))
    (folder / "uv.toml").write_text(uv_configuration(settings, os.environ))
    mounts = [(folder / "pip.conf", "/etc/pip.conf"), (folder / "uv.toml", "/etc/uv/uv.toml")]
    if _CERTIFICATES.is_file():
        mounts.append((_CERTIFICATES, str(_CERTIFICATES)))
    return [option for source, target in mounts for option in ("--volume", f"{source}:{target}:ro")]
