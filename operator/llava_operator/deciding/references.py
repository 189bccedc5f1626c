"""What of its namespace and cluster a run names, and in which field of the spec: for whoever has to create it. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from llava_api.names import volume_claim_name
from llava_operator.credentials import PVC_SCHEME, tracking_servers
from llava_operator.run import Attempt, Run

_PUBLISH = "spec.publish."
CLAIM, SECRET, CONFIG_MAP, STORAGE_CLASS = "PersistentVolumeClaim", "Secret", "ConfigMap", "StorageClass"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An object that a run needs."""

    kind: str
    name: str
    field: str
    """Field of the LlavaFineTune that asks for it."""


def list_references(run: Run) -> Iterator[Reference]:
    """Every object that a run names, in the order of the spec. One may be named more than once."""
    spec = run.spec
    alignment = spec.alignment.dataset if spec.alignment else None
    second = spec.evaluation.retention.dataset if spec.evaluation.retention else None
    destinations = spec.publish.destinations if spec.publish else ()
    for source, field in (
        *((source, f"spec.model.{name}") for name, source in spec.model.sources.items()),
        (spec.dataset.source, "spec.dataset.source"),
        (alignment.source if alignment else None, "spec.alignment.dataset.source"),
        *((part.dataset.source, f"spec.mixture[{n}].dataset.source") for n, part in enumerate(spec.mixture)),
        (second.source if second else None, "spec.evaluation.retention.dataset.source"),
        *((one.address, f"{_PUBLISH}destinations[{n}].address") for n, one in enumerate(destinations)),
    ):
        if source is not None and source.startswith(PVC_SCHEME):
            claim = source.removeprefix(PVC_SCHEME).partition("/")[0]
            yield Reference(kind=CLAIM, name=claim, field=field)
    for secret, field in (
        (spec.model.secret_ref, "spec.model.secretRef"),
        (spec.dataset.secret_ref, "spec.dataset.secretRef"),
        (alignment.secret_ref if alignment else None, "spec.alignment.dataset.secretRef"),
        *((part.dataset.secret_ref, f"spec.mixture[{n}].dataset.secretRef") for n, part in enumerate(spec.mixture)),
        (second.secret_ref if second else None, "spec.evaluation.retention.dataset.secretRef"),
        (spec.download.secret_ref, "spec.download.secretRef"),
        *((server.secret_ref, f"{server.field}.secretRef") for server in tracking_servers(spec)),
        *((one.secret_ref, f"{_PUBLISH}destinations[{n}].secretRef") for n, one in enumerate(destinations)),
        (spec.publish.signing if spec.publish else None, f"{_PUBLISH}signing"),
    ):
        if secret is not None:
            yield Reference(kind=SECRET, name=secret.name, field=field)
    if spec.download.ca_config_map is not None:
        yield Reference(kind=CONFIG_MAP, name=spec.download.ca_config_map, field="spec.download.caConfigMap")
    if spec.storage.existing_claim is not None:
        yield Reference(kind=CLAIM, name=spec.storage.existing_claim, field="spec.storage.existingClaim")
    else:
        yield Reference(kind=CLAIM, name=volume_claim_name(run.key.name), field="spec.storage")
    if spec.storage.storage_class_name is not None:
        field = "spec.storage.storageClassName"
        yield Reference(kind=STORAGE_CLASS, name=spec.storage.storage_class_name, field=field)


def list_claims(attempt: Attempt) -> list[str]:
    """Names of the claims that pods of an attempt mount, each once: what a run reads, or where it publishes to."""
    own = attempt.spec.storage.claim_for(attempt.run.key.name)
    claims = [found for found in list_references(attempt.run) if found.kind == CLAIM]
    mounted = (
        found.name
        for found in claims
        if found.name == own or found.field.startswith(_PUBLISH) == attempt.stage.publishes
    )
    return list(dict.fromkeys(mounted))
