"""What of a run goes beyond what the installation lets runs ask for (``policy``). Pure.

The chart's ValidatingAdmissionPolicy says the same in CEL, word for word; one table of cases (``tests/policies.py``)
drives both. What is read is read with patterns that CEL takes, too (``image_references``, ``llava_api.addresses``).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llava_api.addresses import ADDRESS_HOST, ANY_HOST, ANYTHING, is_allowed_address, is_at, matches
from llava_api.spec import Notification, SecretRef, Spec
from llava_operator.credentials import TrackingServer, tracking_servers
from llava_operator.deciding.image_references import add_registry, is_of_repository
from llava_operator.deciding.policy import PUBLIC_HUB, Policy
from llava_operator.stages import Stage

NAME = "^[a-z0-9.-]*$"
SHOWABLE = "^[!-~]+$"
SHOWABLE_ADDRESS = "^[!-?A-~]+$"
"""Without @, before which a password may stand."""
HIDDEN = "a value that is not shown"


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One thing that a run asks for and the installation does not allow."""

    field: str
    value: str
    rule: str
    fix: str

    @property
    def message(self) -> str:
        """Field, value, rule and fix in one line."""
        return f"{self.field} is {self.value}, but this installation {self.rule}: {self.fix}"


def find_violations(spec: Spec, policy: Policy, stage: Stage) -> tuple[Violation, ...]:
    """What pods of a stage would be given against the policy; empty if all of it is allowed.

    Credentials and authorities are prepare's alone, but for what training pods tell a tracking server with: a run that
    has fetched everything is not held up by a rule about the others that came later.
    """
    found = [*_judge_image(spec, policy)]
    if stage.fetches:
        for judge in (_judge_secrets, _judge_authorities, _judge_hub, _judge_web):
            found += judge(spec, policy)
    if stage.is_gang and tracking_servers(spec):
        for judge in (_judge_way_to_trackers, _judge_authorities):
            found += judge(spec, policy)
    for judge in (_judge_pull_secrets, _judge_tolerations, _judge_service_account):
        found += judge(spec, policy)
    if stage.fetches or stage.is_gang:
        for server in tracking_servers(spec):
            found += [*_judge_tracker(server, policy), *_judge_credential_of_tracker(server, policy)]
    if stage.fetches:
        found += judge_notifications(spec.notifications, policy)
    return tuple(found)


def describe_violations(violations: Sequence[Violation]) -> str:
    """All of them, for a person."""
    return "; ".join(violation.message for violation in violations)


def _judge_image(spec: Spec, policy: Policy) -> Iterator[Violation]:
    reference, allowed = spec.image.reference, policy.image_repositories
    if reference is None or reference == policy.trainer_image or ANYTHING in allowed:
        return
    if not is_of_repository(add_registry(reference), allowed):
        others = f" and images of {', '.join(allowed)}" if allowed else ""
        yield Violation(
            field="spec.image.reference",
            value=_show(reference),
            rule=f"allows its own trainer image{others} only (policy.imageRepositories)",
            fix="name an allowed one, in lower case and with its registry, or leave spec.image.reference out",
        )


class _Part(NamedTuple):
    """A part of the spec whose sources share a Secret."""

    path: str
    secret: str | None
    sources: tuple[tuple[str, str], ...] = ()
    """Field and address."""


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
    yield _Part("spec.download", _name(spec.download.secret_ref))
    yield from (_Part(server.field, _name(server.secret_ref)) for server in tracking_servers(spec))


def _name(secret: SecretRef | None) -> str | None:
    return None if secret is None else secret.name


def _judge_secrets(spec: Spec, policy: Policy) -> Iterator[Violation]:
    for part in _parts(spec):
        if part.secret is not None:
            yield from _judge_secret(f"{part.path}.secretRef.name", part.secret, policy)


def _judge_way_to_trackers(spec: Spec, policy: Policy) -> Iterator[Violation]:
    needed = {"spec.download", *(server.field for server in tracking_servers(spec))}
    for part in _parts(spec):
        if part.secret is not None and part.path in needed:
            yield from _judge_secret(f"{part.path}.secretRef.name", part.secret, policy)


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


def _judge_pull_secrets(spec: Spec, policy: Policy) -> Iterator[Violation]:
    for secret in spec.image_pull_secrets:
        yield from _judge_secret("spec.imagePullSecrets", secret.name, policy)


def _judge_secret(field: str, name: str, policy: Policy) -> Iterator[Violation]:
    return _judge_name(field, name, "Secrets", policy.secret_names, "policy.secretNames")


def _judge_authorities(spec: Spec, policy: Policy) -> Iterator[Violation]:
    name = spec.download.ca_config_map
    if name is not None:
        yield from _judge_name(
            "spec.download.caConfigMap", name, "ConfigMaps with authorities", policy.ca_config_maps,
            "policy.caConfigMaps",
        )  # fmt: skip


def _judge_name(field: str, name: str, kind: str, allowed: Sequence[str], setting: str) -> Iterator[Violation]:
    if ANYTHING in allowed or any(_is_named(name, one) for one in allowed):
        return
    rule = f"allows only {kind} named {', '.join(allowed)}" if allowed else f"allows no {kind}"
    yield Violation(field=field, value=_show(name), rule=f"{rule} ({setting})", fix="name an allowed one, or none")


def _is_named(name: str, pattern: str) -> bool:
    """Whether a name matches a pattern in which ``*`` stands for any part.

    No regular expression: with many stars Python's would take for ever, which CEL's does not.
    """
    first, *middle = pattern.split("*")
    if not middle:
        return name == pattern
    *middle, last = middle
    if len(name) < len(first) + len(last) or not (name.startswith(first) and name.endswith(last)):
        return False
    position, end = len(first), len(name) - len(last)
    for part in middle:
        position = name.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return matches(NAME, name)


def _judge_hub(spec: Spec, policy: Policy) -> Iterator[Violation]:
    """Where the token of a hub goes.

    By TLS nobody on the way can read it, unless the run's own authorities and its own proxy work together: those are
    restricted by ``ca_config_maps``.
    """
    if ANYTHING in policy.hub_token_hosts or not _credentials_for("hf://", spec):
        return
    public = f"https://{PUBLIC_HUB}"
    own, said = policy.hub_endpoint or public, spec.download.hub_endpoint
    # A run that says an empty one gets the public hub, whatever the installation has.
    hub = own if said is None else said or public
    if hub != own and not is_at(hub, policy.hub_token_hosts):
        hosts = "".join(f", https://{host}" for host in policy.hub_token_hosts)
        yield Violation(
            field="spec.download.hubEndpoint",
            value=_show(hub, SHOWABLE_ADDRESS),
            rule=f"sends hub tokens to its own hub{hosts} only (policy.hubTokenHosts)",
            fix="name an allowed one, or leave out spec.download.hubEndpoint or the secretRef of hf:// sources",
        )
    elif hub == own and own.startswith("http://") and spec.download.http_proxy:
        yield Violation(
            field="spec.download.httpProxy",
            value=_show(spec.download.http_proxy, SHOWABLE_ADDRESS),
            rule="reaches its hub without TLS, and the proxy would read the token (policy.hubTokenHosts)",
            fix="leave out spec.download.httpProxy or the secretRef of hf:// sources",
        )


def _judge_web(spec: Spec, policy: Policy) -> Iterator[Violation]:
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


def _judge_tolerations(spec: Spec, policy: Policy) -> Iterator[Violation]:
    if spec.scheduling.tolerations and not policy.tolerations:
        yield Violation(
            field="spec.scheduling.tolerations",
            value="not empty",
            rule="allows none (policy.tolerations)",
            fix="leave spec.scheduling.tolerations out",
        )


def _judge_service_account(spec: Spec, policy: Policy) -> Iterator[Violation]:
    name = spec.scheduling.service_account_name
    if name is not None:
        yield from _judge_name(
            "spec.scheduling.serviceAccountName", name, "ServiceAccounts", policy.service_account_names,
            "policy.serviceAccountNames",
        )  # fmt: skip


def judge_notifications(notifications: Sequence[Notification], policy: Policy) -> Iterator[Violation]:
    """What of notifications goes beyond what is allowed, rule by rule.

    An address in a Secret is the sending pod's to judge, by the same rules (``Delivery``); and so is the proxy that an
    address is reached by, which may be in a Secret, too.
    """
    for kind in ("webhook", "slack"):
        for one in notifications:
            if one.secret is not None and getattr(one, kind) is not None:
                yield from _judge_secret(f"spec.notifications.{kind}.secretRef.name", one.secret, policy)
    urls = [one.url for one in notifications if one.url is not None]
    in_clear = [url for url in urls if url.startswith("http://") and not policy.insecure_notifications]
    for url in in_clear:
        yield _about_address(url, "sends notifications by https only (policy.insecureNotifications)")
    hosts = ", ".join(policy.notification_hosts)
    allowed = f"only to {hosts}" if hosts else "to no host"
    for url in urls:
        if url not in in_clear and not is_allowed_address(url, policy.notification_hosts, insecure=True):
            yield _about_address(url, f"sends notifications {allowed} (policy.notificationHosts)")


def judge_sending(spec: Spec, wanted: Notification, policy: Policy) -> Iterator[Violation]:
    """What the pod that sends one notification would be given against the policy.

    Runs that are refused are told of as well, and rules may have come after a run: it is judged each time, by all that
    it takes from the run.
    """
    yield from judge_notifications((wanted,), policy)
    if (secret := _name(spec.download.secret_ref)) is not None:
        yield from _judge_secret("spec.download.secretRef.name", secret, policy)
    for judge in (_judge_authorities, _judge_pull_secrets, _judge_tolerations):
        yield from judge(spec, policy)


def _about_address(url: str, rule: str) -> Violation:
    # Only the host: a path may be a secret itself.
    host = re.match(ANY_HOST, url)
    return Violation(
        field="spec.notifications.webhook.url", value=f"at {host[0]}" if host else HIDDEN, rule=rule,
        fix="use an allowed address, or leave the notification out",
    )  # fmt: skip


def _show(value: str, pattern: str = SHOWABLE) -> str:
    return value if matches(pattern, value) else HIDDEN
