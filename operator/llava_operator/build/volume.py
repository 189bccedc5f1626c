"""The run's own volume claim, and the claims that it reads."""

from typing import NamedTuple

from llava_api.names import volume_claim_name
from llava_api.spec import Spec
from llava_operator.build.common import build_labels, build_metadata
from llava_operator.run import Run
from llava_operator.wire import Object

PVC_SCHEME = "pvc://"


class Source(NamedTuple):
    """A parsed ``pvc://CLAIM/PATH``."""

    claim: str
    path: str
    """Path below the claim's root; empty for the root itself."""


def parse_source(source: str) -> Source:
    """Claim and path of a source.

    Raises:
        ValueError: it is no ``pvc://`` source. The CRD lets none through.
    """
    if not source.startswith(PVC_SCHEME):
        raise ValueError(f"source is {source!r} but must be {PVC_SCHEME}CLAIM/PATH")
    claim, _, path = source.removeprefix(PVC_SCHEME).partition("/")
    return Source(claim, path.strip("/"))


def input_claims(spec: Spec) -> list[str]:
    """Claims that a run reads, each once, in the order of the spec."""
    return list(dict.fromkeys(parse_source(source).claim for source in (spec.model.source or "", spec.dataset.source)))


def build_volume_claim(run: Run) -> Object:
    """The claim that holds everything a run makes."""
    storage = run.spec.storage
    spec: Object = {
        "accessModes": list(storage.access_modes or _default_access_modes(run.spec)),
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name is not None:
        spec["storageClassName"] = storage.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": build_metadata(run, volume_claim_name(run.key.name), build_labels(run)),
        "spec": spec,
    }


def _default_access_modes(spec: Spec) -> tuple[str, ...]:
    # Every training pod writes to the volume, and they may land on different nodes.
    return ("ReadWriteMany",) if spec.workers.replicas > 1 else ("ReadWriteOnce",)
