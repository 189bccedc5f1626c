"""Which Secrets and authorities a run may name, and to whom what is in them is sent. Pure."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from llava_api.addresses import ADDRESS_HOST, ANY_HOST, ANYTHING, is_allowed_address, is_at
from llava_api.spec import SecretRef, Spec
from llava_operator.credentials import TrackingServer, goes_out, tracking_servers
from llava_operator.deciding.policy import PUBLIC_HUB, Policy
from llava_operator.deciding.violations.violation import (
    HIDDEN,
    SHOWABLE_ADDRESS,
    Violation,
    judge_name,
    judge_secret,
    show_value,
)
from llava_operator.stages import Stage

_OF_HUB = "the secretRef of hf:// sources and hf:// destinations"
_DOWNLOAD, _DESTINATIONS, _SIGNING = "spec.download", "spec.publish.destinations", "spec.publish.signing"


class _Part(NamedTuple):
    """A part of the spec whose sources share a Secret."""

    path: str
    secret: str | None
    sources: tuple[tuple[str, str], ...] = ()
    """Field and address."""

    @property
    def field(self) -> str:
        """That names the Secret."""
        return f"{self.path}.name" if self.path == _SIGNING else f"{self.path}.secretRef.name"


def _parts(spec: Spec) -> Iterator[_Part]:
    named = tuple((f"spec.model.{name}", source) for name, source in spec.model.sources.items())
    yield _Part("spec.model", _name(spec.model.secret_ref), named)
    datasets = [("spec.dataset", spec.dataset)]
    if spec.alignment is not None:
        datasets.append(("spec.alignment.dataset", spec.alignment.dataset))
    if spec.evaluation.retention is not None:
        datasets.append(("spec.evaluation.retention.dataset", spec.evaluation.retention.dataset))
    # Without their places: CEL does not tell which of a list it looks at.
    datasets += (("spec.mixture.dataset", part.dataset) for part in spec.mixture)
    for path, dataset in datasets:
        yield _Part(path, _name(dataset.secret_ref), ((f"{path}.source", dataset.source),))
    yield _Part(_DOWNLOAD, _name(spec.download.secret_ref))
    yield from (_Part(server.field, _name(server.secret_ref)) for server in tracking_servers(spec))
    if spec.publish is not None:
        yield from (_Part(_DESTINATIONS, _name(one.secret_ref)) for one in spec.publish.destinations)
        yield _Part(_SIGNING, _name(spec.publish.signing))


def _name(secret: SecretRef | None) -> str | None:
    return None if secret is None else secret.name


def judge_secrets(spec: Spec, policy: Policy, stage: Stage) -> Iterator[Violation]:
    """Secrets of sources and destinations, of proxies, trackers and the signing key, as far as a stage is asked."""
    for part in _parts(spec):
        if part.secret is not None and _is_asked_about(part, spec, stage):
            yield from judge_secret(part.field, part.secret, policy)


def _is_asked_about(part: _Part, spec: Spec, stage: Stage) -> bool:
    """Before anything begins about all of them, and then about what pods of the stage are given."""
    if stage.fetches:
        return True
    if part.path == _DOWNLOAD:
        return goes_out(spec, stage)
    if part.path in (_DESTINATIONS, _SIGNING):
        return stage.publishes
    return stage.is_gang and part.path in {server.field for server in tracking_servers(spec)}


def judge_trackers(spec: Spec, policy: Policy) -> Iterator[Violation]:
    """Where curves, and the credentials of those who take them, go."""
    for server in tracking_servers(spec):
        yield from _judge_tracker(server, policy)
        yield from _judge_credential_of_tracker(server, policy)


def _judge_tracker(server: TrackingServer, policy: Policy) -> Iterator[Violation]:
    hosts = policy.tracking_hosts
    if ANYTHING in hosts or is_allowed_address(server.url, hosts, insecure=True):
        return
    allowed = f"only to {', '.join(hosts)}" if hosts else "to nobody"
    host = re.match(ANY_HOST, server.url)
    yield Violation(
        field=f"{server.field}.url",
        value=f"at {host[0]}" if host else HIDDEN,
        rule=f"tells the curves of runs {allowed} (policy.trackingHosts)",
        fix=f"use an allowed address, or leave {server.field} out",
    )


def _judge_credential_of_tracker(server: TrackingServer, policy: Policy) -> Iterator[Violation]:
    """Where what a Secret holds is sent: without this rule it would go round the one for sources.

    Whom ``tracking_hosts`` names may get it; ``*`` there is about curves.
    """
    hosts = policy.web_credential_hosts
    if server.secret_ref is None or ANYTHING not in policy.tracking_hosts or ANYTHING in hosts:
        return
    if not is_at(server.url, (*policy.tracking_hosts, *hosts)):
        host = re.match(ANY_HOST, server.url)
        allowed = "".join(f"https://{host}, " for host in hosts)
        yield Violation(
            field=f"{server.field}.url",
            value=f"at {host[0]}" if host else HIDDEN,
            rule=f"sends credentials of trackers only to {allowed}hosts that policy.trackingHosts names "
            "(policy.webCredentialHosts)",
            fix="use an allowed one, or leave out the secretRef beside it",
        )


def judge_authorities(spec: Spec, policy: Policy) -> Iterator[Violation]:
    """ConfigMaps whose authorities a run trusts."""
    name = spec.download.ca_config_map
    if name is not None:
        yield from judge_name(
            "spec.download.caConfigMap", name, "ConfigMaps with authorities", policy.ca_config_maps,
            "policy.caConfigMaps",
        )  # fmt: skip


def judge_hub(spec: Spec, policy: Policy, stage: Stage) -> Iterator[Violation]:
    """Where the token of a hub goes, and what is published on one.

    By TLS nobody on the way can read it, unless the run's own authorities and its own proxy work together: those are
    restricted by ``ca_config_maps``.
    """
    if ANYTHING in policy.hub_token_hosts or not _uses_hub(spec, stage):
        return
    public = f"https://{PUBLIC_HUB}"
    own, said = policy.hub_endpoint or public, spec.download.hub_endpoint
    # A run that says an empty one gets the public hub, whatever the installation has.
    hub = own if said is None else said or public
    if hub != own and not is_at(hub, policy.hub_token_hosts):
        hosts = "".join(f", https://{host}" for host in policy.hub_token_hosts)
        yield Violation(
            field="spec.download.hubEndpoint",
            value=show_value(hub, SHOWABLE_ADDRESS),
            rule=f"sends hub tokens to its own hub{hosts} only (policy.hubTokenHosts)",
            fix=f"name an allowed one, or leave out spec.download.hubEndpoint or {_OF_HUB}",
        )
    elif hub == own and own.startswith("http://") and spec.download.http_proxy:
        yield Violation(
            field="spec.download.httpProxy",
            value=show_value(spec.download.http_proxy, SHOWABLE_ADDRESS),
            rule="reaches its hub without TLS, and the proxy would read the token (policy.hubTokenHosts)",
            fix=f"leave out spec.download.httpProxy or {_OF_HUB}",
        )


def _uses_hub(spec: Spec, stage: Stage) -> bool:
    """Whether a token is sent to a hub, or a model, which goes nowhere without one."""
    publishes = (stage.fetches or stage.publishes) and spec.publish is not None
    destinations = spec.publish.destinations if publishes and spec.publish else ()
    is_published = any(one.address.startswith("hf://") for one in destinations)
    return is_published or (stage.fetches and bool(_credentials_for("hf://", spec)))


def judge_web(spec: Spec, policy: Policy) -> Iterator[Violation]:
    """Where the credentials of https:// sources go."""
    hosts = policy.web_credential_hosts
    if ANYTHING in hosts:
        return
    allowed = f"only to {', '.join(f'https://{host}' for host in hosts)}" if hosts else "to no host"
    for field, source in _credentials_for("https://", spec):
        if not is_at(source, hosts):
            # Only the host: a query may be a secret itself.
            host = re.match(ADDRESS_HOST, source)
            yield Violation(
                field=field,
                value=f"at {host[0]}" if host else HIDDEN,
                rule=f"sends credentials of https:// sources {allowed} (policy.webCredentialHosts)",
                fix="use an allowed one, or leave out the secretRef beside it",
            )


def _credentials_for(scheme: str, spec: Spec) -> list[tuple[str, str]]:
    """Sources of a kind that are asked for with what a Secret holds."""
    return [
        (field, source)
        for part in _parts(spec)
        if part.secret is not None
        for field, source in part.sources
        if source.startswith(scheme)
    ]
