"""What a run reads: claims, Secrets and authorities that its stages mount, and where they find things. Pure.

Of a Secret only the keys that its stage knows reach the container, whatever else is in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from llava_api.constants import (
    DOWNLOAD_CA_PATH,
    INPUTS_PATH,
    PROXY_KEYS,
    SECRETS_PATH,
    SecretRole,
    StageName,
)
from llava_api.spec import Download, Spec
from llava_api.volume import RunVolume
from llava_operator.credentials import PVC_SCHEME, SecretUse, goes_out, secrets_for, secrets_of
from llava_operator.kube.objects import Object
from llava_operator.run import Run
from llava_operator.stages import Stage

_IN_SECRET = frozenset({"http_proxy", "https_proxy"})
"""What ``spec.download.secretRef`` may hold."""
SECRET_MODE = 0o440
"""Readable by the pod's group only, which the volume gets."""
_KNOWN_KEYS = "known~keys"
"""Folder of a Secret's volume that is all that the container sees. No key may have a ~, so it is nobody's key."""


class Source(NamedTuple):
    """A parsed ``pvc://CLAIM/PATH``."""

    claim: str
    path: str
    """Path below the claim's root; empty for the root itself."""


def parse_source(source: str) -> Source | None:
    """Claim and path of a ``pvc://`` source; None for one that is fetched."""
    if not source.startswith(PVC_SCHEME):
        return None
    claim, _, path = source.removeprefix(PVC_SCHEME).partition("/")
    return Source(claim, path.strip("/"))


def list_sources(spec: Spec, stage: Stage) -> Iterator[str]:
    """Sources that a stage reads, in the order of the spec.

    Prepare reads all of them. What a model is put together from is on the run's volume afterwards, and what is
    published, too.
    """
    if stage.publishes:
        return
    yield from (source for name, source in spec.model.sources.items() if name == "source" or stage.fetches)
    yield spec.dataset.source
    if spec.alignment is not None:
        yield spec.alignment.dataset.source
    yield from (part.dataset.source for part in spec.mixture)
    if spec.evaluation.retention is not None and (stage.fetches or stage.name is StageName.EVALUATE):
        yield spec.evaluation.retention.dataset.source


def input_claims(spec: Spec, stage: Stage) -> list[str]:
    """Claims that a stage reads, each once, in the order of the spec."""
    found = (parse_source(source) for source in list_sources(spec, stage))
    return list(dict.fromkeys(source.claim for source in found if source is not None))


def input_dir(source: str | None, fetched: Path) -> Path:
    """Where stages read a source: on its claim, or where prepare is going to put it."""
    found = parse_source(source) if source is not None else None
    return Path(INPUTS_PATH) / found.claim / found.path if found else fetched


def model_dir(run: Run) -> Path:
    """Where the model is; what prepare writes down has the last word."""
    return input_dir(run.spec.model.source, RunVolume(root=run.volume_root).model_dir)


def dataset_dir(run: Run, source: str, role: SecretRole) -> Path:
    """Where a dataset is."""
    return input_dir(source, RunVolume(root=run.volume_root).download_dir(role))


def complete_download(given: Download, default: Download) -> Download:
    """What the run says, and where it says nothing, what the installation says.

    A run with proxies in a Secret of its own has said so: the installation's would come before them. The installation's
    own Secret is mounted where there is one, and not named: only a Secret that a run names has to have keys.
    """
    said = {"secret_ref"} | (_IN_SECRET if given.secret_ref is not None else frozenset())
    missing = {name: value for name, value in default if name not in said and getattr(given, name) is None}
    return given.model_copy(update=missing)


@dataclass(frozen=True, kw_only=True)
class Mounted:
    """A volume of the pod and its place in the container."""

    volume: Object
    mount: Object


def build_inputs(spec: Spec, stage: Stage, default: Download) -> list[Mounted]:
    """Everything that a stage reads from outside the run's volume, read-only."""
    mounted = [
        _mount(
            f"input-{index}",
            {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
            f"{INPUTS_PATH}/{claim}",
        )
        for index, claim in enumerate(input_claims(spec, stage))
    ]
    used = {role: use for role, use in secrets_for(spec, stage).items() if role is not SecretRole.DOWNLOAD}
    mounted += [_mount_secret(role, use) for role, use in used.items()]
    if not goes_out(spec, stage):
        return mounted
    return mounted + build_way_out(spec, default)


def build_way_out(spec: Spec, default: Download) -> list[Mounted]:
    """What is needed to reach others, read-only: proxies with their passwords, and further authorities."""
    mounted = []
    if (own := secrets_of(spec).get(SecretRole.DOWNLOAD)) is not None:
        mounted.append(_mount_secret(SecretRole.DOWNLOAD, own))
    elif default.secret_ref is not None:
        mounted.append(_mount_optional_secret(SecretRole.DOWNLOAD, SecretUse(default.secret_ref.name, PROXY_KEYS)))
    authorities = complete_download(spec.download, default).ca_config_map
    if authorities is not None:
        key = PurePosixPath(DOWNLOAD_CA_PATH).name
        source: Object = {"name": authorities, "items": [{"key": key, "path": key}]}
        if spec.download.ca_config_map is None:
            # The installation's: not every namespace needs to have it.
            source["optional"] = True
        mounted.append(_mount("download-ca", {"configMap": source}, str(PurePosixPath(DOWNLOAD_CA_PATH).parent)))
    return mounted


def _mount_secret(role: SecretRole, secret: SecretUse) -> Mounted:
    """The known keys of a Secret that the run names; the kubelet waits for the Secret.

    No key of it has to be there (a bearer does instead of username and password), and a source whose keys are all
    optional is not waited for. So one without keys is named first, for which the Secret has to exist, and the container
    is given the folder of the other alone. Both are of one volume, because the kubelet makes each at an instant of its
    own: with two, the one that waits could be ready after the other was found empty.
    """
    known = _list_keys(secret, f"{_KNOWN_KEYS}/")
    projected = {"defaultMode": SECRET_MODE, "sources": [{"secret": {"name": secret.name}}, {"secret": known}]}
    made = _mount(f"secret-{role}", {"projected": projected}, f"{SECRETS_PATH}/{role}")
    return Mounted(volume=made.volume, mount={**made.mount, "subPath": _KNOWN_KEYS})


def _mount_optional_secret(role: SecretRole, secret: SecretUse) -> Mounted:
    """The known keys of the installation's Secret: not every namespace needs to have it."""
    projected = {"defaultMode": SECRET_MODE, "sources": [{"secret": _list_keys(secret)}]}
    return _mount(f"secret-{role}", {"projected": projected}, f"{SECRETS_PATH}/{role}")


def _list_keys(secret: SecretUse, folder: str = "") -> Object:
    items = [{"key": key, "path": f"{folder}{key}"} for key in secret.keys]
    return {"name": secret.name, "items": items, "optional": True}


def _mount(name: str, source: Object, path: str) -> Mounted:
    return Mounted(volume={"name": name, **source}, mount={"name": name, "mountPath": path, "readOnly": True})
