"""Which credentials a run names, and which stage is given which: none is given any that it does not use. Pure."""

from dataclasses import dataclass
from typing import NamedTuple

from llava_api.constants import PROXY_KEYS, SECRET_KEYS, SIGNING_KEYS, WANDB_KEYS, SecretRole
from llava_api.spec import MAX_DESTINATIONS, Publish, SecretRef, Spec
from llava_operator.stages import Stage

PVC_SCHEME = "pvc://"
_OF_TRACKERS = (SecretRole.TRACKING, SecretRole.WANDB)
_OF_PUBLISHING = (SecretRole.SIGNING, *map(SecretRole.of_destination, range(MAX_DESTINATIONS)))


class SecretUse(NamedTuple):
    """A Secret that a stage needs."""

    name: str
    keys: tuple[str, ...]
    """Keys that may be read of it; which of them it has is its author's choice."""


@dataclass(frozen=True, kw_only=True)
class TrackingServer:
    """A server that training pods tell the curve."""

    field: str
    """Field of the LlavaFineTune that names it."""
    url: str
    secret_ref: SecretRef | None
    role: SecretRole
    keys: tuple[str, ...]
    """Keys that may be read of its Secret."""


def tracking_servers(spec: Spec) -> tuple[TrackingServer, ...]:
    """The servers that training pods tell the curve, in the order of the spec."""
    tracking = spec.training.tracking
    servers = []
    if tracking is not None and (mlflow := tracking.mlflow) is not None:
        servers.append(
            TrackingServer(
                field="spec.training.tracking.mlflow", url=mlflow.url, secret_ref=mlflow.secret_ref,
                role=SecretRole.TRACKING, keys=SECRET_KEYS["https://"],
            )
        )  # fmt: skip
    # Without a key its run stays on the volume.
    if tracking is not None and (wandb := tracking.wandb) is not None and wandb.secret_ref is not None:
        servers.append(
            TrackingServer(
                field="spec.training.tracking.wandb", url=wandb.url, secret_ref=wandb.secret_ref,
                role=SecretRole.WANDB, keys=WANDB_KEYS,
            )
        )  # fmt: skip
    return tuple(servers)


def goes_out(spec: Spec, stage: Stage) -> bool:
    """Whether a stage reaches others.

    Prepare does for its sources, training pods where they tell tracking servers, publishing where a destination is no
    claim.
    """
    if stage.publishes:
        return spec.publish is not None and any(_is_remote(one.address) for one in spec.publish.destinations)
    return stage.fetches or (stage.is_gang and bool(tracking_servers(spec)))


def _is_remote(address: str) -> bool:
    return not address.startswith(PVC_SCHEME)


def secrets_for(spec: Spec, stage: Stage) -> dict[SecretRole, SecretUse]:
    """Secrets of which a stage is given the known keys, by what they are for.

    Those of sources are for prepare alone, those of destinations and the signing key for publishing, those of a
    tracking server for training, and proxies with their passwords for whoever reaches others.
    """
    return {role: use for role, use in secrets_of(spec).items() if _is_for(role, spec, stage)}


def _is_for(role: SecretRole, spec: Spec, stage: Stage) -> bool:
    if role is SecretRole.DOWNLOAD:
        return goes_out(spec, stage)
    if role in _OF_TRACKERS:
        return stage.is_gang
    return stage.publishes if role in _OF_PUBLISHING else stage.fetches


def secrets_of(spec: Spec) -> dict[SecretRole, SecretUse]:
    """Every Secret with credentials that a run names, by what it is for; none for what is on a claim."""
    uses = {
        SecretRole.MODEL: (spec.model.secret_ref, _keys_for(*spec.model.sources.values())),
        SecretRole.DATASET: (spec.dataset.secret_ref, _keys_for(spec.dataset.source)),
    }
    if spec.alignment is not None:
        dataset = spec.alignment.dataset
        uses[SecretRole.ALIGNMENT_DATASET] = (dataset.secret_ref, _keys_for(dataset.source))
    for index, part in enumerate(spec.mixture):
        uses[SecretRole.of_mixture(index)] = (part.dataset.secret_ref, _keys_for(part.dataset.source))
    if spec.evaluation.retention is not None:
        second = spec.evaluation.retention.dataset
        uses[SecretRole.RETENTION] = (second.secret_ref, _keys_for(second.source))
    uses[SecretRole.DOWNLOAD] = (spec.download.secret_ref, PROXY_KEYS)
    for server in tracking_servers(spec):
        uses[server.role] = (server.secret_ref, server.keys)
    if spec.publish is not None:
        uses |= _of_publishing(spec.publish)
    return {role: SecretUse(secret.name, keys) for role, (secret, keys) in uses.items() if secret is not None and keys}


def _of_publishing(publish: Publish) -> dict[SecretRole, tuple[SecretRef | None, tuple[str, ...]]]:
    named = {
        SecretRole.of_destination(index): (one.secret_ref, _keys_for(one.address))
        for index, one in enumerate(publish.destinations)
    }
    return {**named, SecretRole.SIGNING: (publish.signing, SIGNING_KEYS)}


def _keys_for(*addresses: str | None) -> tuple[str, ...]:
    """Keys that sources, or a destination, are reached with, in the order of the table."""
    return tuple(
        key
        for scheme, keys in SECRET_KEYS.items()
        if any(address is not None and address.startswith(scheme) for address in addresses)
        for key in keys
    )
