"""What of a run goes beyond what the installation lets runs ask for. Pure."""

from collections.abc import Iterator

from llava_api.addresses import ANYTHING
from llava_api.spec import Notification, Spec
from llava_operator.credentials import goes_out
from llava_operator.deciding.image_references import add_registry, is_of_repository
from llava_operator.deciding.policy import Policy
from llava_operator.deciding.violations.credentials import (
    judge_authorities,
    judge_hub,
    judge_secrets,
    judge_trackers,
    judge_web,
)
from llava_operator.deciding.violations.notifications import judge_notifications
from llava_operator.deciding.violations.publishing import judge_destinations
from llava_operator.deciding.violations.violation import Violation, judge_name, judge_secret, show_value
from llava_operator.stages import Stage


def find_violations(spec: Spec, policy: Policy, stage: Stage) -> tuple[Violation, ...]:
    """What pods of a stage would be given against the policy; empty if all of it is allowed.

    Prepare is asked about all that the run is going to ask for, and each later stage about what its own pods are given:
    a run that has fetched everything is not held up by a rule about credentials of sources that came later.
    """
    found = [*_judge_image(spec, policy), *judge_secrets(spec, policy, stage)]
    if goes_out(spec, stage):
        found += judge_authorities(spec, policy)
    found += judge_hub(spec, policy, stage)
    if stage.fetches:
        found += judge_web(spec, policy)
    for judge in (_judge_pull_secrets, _judge_tolerations, _judge_service_account):
        found += judge(spec, policy)
    if stage.fetches or stage.is_gang:
        found += judge_trackers(spec, policy)
    if stage.fetches:
        found += judge_notifications(spec.notifications, policy)
    if stage.fetches or stage.publishes:
        found += judge_destinations(spec, policy)
    return tuple(found)


def judge_sending(spec: Spec, wanted: Notification, policy: Policy) -> Iterator[Violation]:
    """What the pod that sends one notification would be given against the policy.

    Runs that are refused are told of as well, and rules may have come after a run: it is judged each time, by all that
    it takes from the run.
    """
    yield from judge_notifications((wanted,), policy)
    if spec.download.secret_ref is not None:
        yield from judge_secret("spec.download.secretRef.name", spec.download.secret_ref.name, policy)
    for judge in (judge_authorities, _judge_pull_secrets, _judge_tolerations):
        yield from judge(spec, policy)


def _judge_image(spec: Spec, policy: Policy) -> Iterator[Violation]:
    reference, allowed = spec.image.reference, policy.image_repositories
    if reference is None or reference == policy.trainer_image or ANYTHING in allowed:
        return
    if not is_of_repository(add_registry(reference), allowed):
        others = f" and images of {', '.join(allowed)}" if allowed else ""
        yield Violation(
            field="spec.image.reference",
            value=show_value(reference),
            rule=f"allows its own trainer image{others} only (policy.imageRepositories)",
            fix="name an allowed one, in lower case and with its registry, or leave spec.image.reference out",
        )


def _judge_pull_secrets(spec: Spec, policy: Policy) -> Iterator[Violation]:
    for secret in spec.image_pull_secrets:
        yield from judge_secret("spec.imagePullSecrets", secret.name, policy)


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
        yield from judge_name(
            "spec.scheduling.serviceAccountName", name, "ServiceAccounts", policy.service_account_names,
            "policy.serviceAccountNames",
        )  # fmt: skip
