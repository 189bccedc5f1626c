"""The installer's rules: the table that the admission policy is held to as well, and odd values at random."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_api.addresses import ANYTHING
from llava_api.constants import StageName
from llava_api.resource import LlavaFineTune
from llava_api.schema import build_schema
from llava_api.spec import Spec
from llava_operator.deciding.policy import Policy
from llava_operator.deciding.violations import Violation, describe_violations, find_violations
from llava_operator.stages import STAGES
from tests.policies import CASES, EVERYTHING, INSTALLATIONS, Case, make_spec, policy_of

NAMES = st.text(st.sampled_from("az09.-*\n /@:AZé\\"), min_size=1, max_size=30)


def judge(changes: dict[str, Any], policy: Policy, stage: StageName = StageName.PREPARE) -> tuple[Violation, ...]:
    return find_violations(Spec.model_validate(make_spec(changes)), policy, STAGES[stage])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    found = judge(case.spec, policy_of(INSTALLATIONS[case.installation]))
    if case.refusal is None:
        assert found == ()
    else:
        assert found, "allowed"
        assert found[0].message.startswith(case.refusal)
        assert (found[0].field, found[0].message.count("(policy.")) == (case.refusal.split()[0], 1)


def test_an_installation_that_allows_everything_refuses_nothing() -> None:
    for case in CASES:
        assert judge(case.spec, policy_of(EVERYTHING)) == (), case


def named_objects(schema: dict[str, Any], path: str = "spec") -> Iterator[str]:
    for name, inner in schema.get("properties", {}).items():
        # The key that signs is named by no such field.
        if re.search("(secret|configmap)", name, re.IGNORECASE) or inner.get("properties", {}).keys() == {"name"}:
            yield f"{path}.{name}"
        else:
            yield from named_objects(inner, f"{path}.{name}")
            yield from named_objects(inner.get("items", {}), f"{path}.{name}")


def test_every_place_in_a_spec_that_names_a_secret_or_a_config_map_has_a_rule() -> None:
    """A field that comes later fails here, until there is a rule about it, and cases in the table."""
    fields = {case.refusal.split()[0].removesuffix(".name") for case in CASES if case.refusal}
    found = set(named_objects(build_schema(LlavaFineTune)["properties"]["spec"]))
    assert found <= fields
    assert {field for field in fields if re.search("(secret|configmap)", field, re.IGNORECASE)} <= found
    assert len(found) == 14


EVERY_WAY: dict[str, Any] = {
    "image": {"reference": "evil.example/x"},
    "model": {"source": "hf://a/b", "secretRef": {"name": "a"}},
    "dataset": {"source": "https://e/x.zip", "secretRef": {"name": "b"}},
    "download": {"hubEndpoint": "https://e", "caConfigMap": "c", "secretRef": {"name": "d"}},
    "imagePullSecrets": [{"name": "e"}, {"name": "f"}],
    "scheduling": {"tolerations": [{"operator": "Exists"}], "serviceAccountName": "any"},
    "notifications": [
        {"name": "a", "webhook": {"url": "http://e/x", "secretRef": {"name": "g"}}},
        {"name": "b", "slack": {"secretRef": {"name": "h"}}},
        {"name": "c", "webhook": {"url": "https://e/x"}},
    ],
    "publish": {
        "destinations": [{"address": "s3://e/x", "secretRef": {"name": "i"}}, {"address": "hf://e/x"}],
        "signing": {"name": "j"},
    },
}


def test_everything_that_is_wrong_is_told_at_once() -> None:
    found = judge(EVERY_WAY, policy_of(INSTALLATIONS["strict"]))
    fields = [violation.field for violation in found]
    assert fields == [
        "spec.image.reference", "spec.model.secretRef.name", "spec.dataset.secretRef.name",
        "spec.download.secretRef.name", "spec.publish.destinations.secretRef.name", "spec.publish.signing.name",
        "spec.download.caConfigMap", "spec.download.hubEndpoint", "spec.dataset.source",
        "spec.imagePullSecrets", "spec.imagePullSecrets", "spec.scheduling.tolerations",
        "spec.scheduling.serviceAccountName", "spec.notifications.webhook.secretRef.name",
        "spec.notifications.slack.secretRef.name", "spec.notifications.webhook.url", "spec.notifications.webhook.url",
        "spec.publish.destinations.address", "spec.publish.destinations.address",
    ]  # fmt: skip
    assert describe_violations(found) == "; ".join(violation.message for violation in found)


@pytest.mark.parametrize("stage", [stage for stage in StageName if stage not in (StageName.PREPARE, StageName.PUBLISH)])
def test_later_stages_are_held_to_what_their_pods_are_given(stage: StageName) -> None:
    """They see no credentials: rules about those do not stop a run that has fetched everything."""
    fields = [violation.field for violation in judge(EVERY_WAY, policy_of(INSTALLATIONS["strict"]), stage)]
    assert fields == [
        "spec.image.reference", "spec.imagePullSecrets", "spec.imagePullSecrets", "spec.scheduling.tolerations",
        "spec.scheduling.serviceAccountName",
    ]  # fmt: skip


def test_publishing_is_held_to_what_its_pod_is_given() -> None:
    """No rule about sources, images that they name, or receivers; but the way out is its own."""
    fields = [one.field for one in judge(EVERY_WAY, policy_of(INSTALLATIONS["strict"]), StageName.PUBLISH)]
    assert fields == [
        "spec.image.reference", "spec.download.secretRef.name", "spec.publish.destinations.secretRef.name",
        "spec.publish.signing.name", "spec.download.caConfigMap", "spec.download.hubEndpoint", "spec.imagePullSecrets",
        "spec.imagePullSecrets", "spec.scheduling.tolerations", "spec.scheduling.serviceAccountName",
        "spec.publish.destinations.address", "spec.publish.destinations.address",
    ]  # fmt: skip
    on_a_claim = EVERY_WAY | {"publish": {"destinations": [{"address": "pvc://shared/models/x"}]}}
    fields = [one.field for one in judge(on_a_claim, policy_of(INSTALLATIONS["strict"]), StageName.PUBLISH)]
    assert not [field for field in fields if field.startswith(("spec.download", "spec.publish"))]


@given(NAMES)
def test_a_place_allows_itself_and_what_is_below_it_alone(tail: str) -> None:
    policy = replace(Policy(), publish_destinations=("oci://registry.example/team",))
    if not judge({"publish": {"destinations": [{"address": f"oci://registry.example/team{tail}"}]}}, policy):
        assert tail[0] in "/:@"
        assert tail.isascii()
        assert not set(tail) & set("\n *\\")
        assert "/" not in tail[1:] or tail[0] == "/", "nothing but a tag follows a colon"


@given(NAMES)
def test_a_place_elsewhere_is_refused(head: str) -> None:
    policy = replace(Policy(), publish_destinations=("s3://team",))
    for address in (f"{head}s3://team/x", f"s3://{head}team/x", f"s3://{head}/s3://team/x"):
        assert judge({"publish": {"destinations": [{"address": address}]}}, policy)


def test_defaults_restrict_hub_tokens_accounts_and_plain_http_and_nothing_else() -> None:
    assert [violation.field for violation in judge(EVERY_WAY, Policy())] == [
        "spec.download.hubEndpoint", "spec.scheduling.serviceAccountName", "spec.notifications.webhook.url",
    ]  # fmt: skip


def test_training_is_held_to_where_a_tracker_s_credentials_go() -> None:
    """Its pods are the ones that have them."""
    mlflow = {"url": "https://evil.example", "experiment": "e", "secretRef": {"name": "a"}}
    run, policy = {"training": {"tracking": {"mlflow": mlflow}}}, policy_of(INSTALLATIONS["open-curves"])
    for stage in (StageName.PREPARE, StageName.ALIGN, StageName.TRAIN):
        assert [violation.field for violation in judge(run, policy, stage)] == ["spec.training.tracking.mlflow.url"]
    assert judge(run, policy, StageName.MERGE) == ()


@given(NAMES)
def test_a_repository_allows_itself_and_what_is_below_it_alone(tail: str) -> None:
    """Whatever follows the allowed repository is a path, a tag or a digest, else it is refused."""
    policy = replace(Policy(), image_repositories=("registry.example/team",))
    if not judge({"image": {"reference": f"registry.example/team{tail}"}}, policy):
        assert tail[0] in "/:@"
        assert tail.isascii()
        assert not set(tail) & set("\n *\\")
        if tail[0] == ":":
            assert "/" not in tail, "a port, and another registry"


@given(NAMES)
def test_an_image_of_another_registry_is_refused(head: str) -> None:
    policy = replace(Policy(), image_repositories=("registry.example/team",))
    assert judge({"image": {"reference": f"{head}registry.example/team"}}, policy)


@given(NAMES, NAMES)
def test_tokens_go_to_the_host_alone(head: str, tail: str) -> None:
    spec = {"model": {"source": "hf://a/b", "secretRef": {"name": "a"}}}
    for address in (f"https://{head}huggingface.co", f"https://huggingface.co{tail}"):
        refused = judge({**spec, "download": {"hubEndpoint": address}}, Policy())
        assert refused or (address.startswith("https://huggingface.co/") and "\n" not in address)


@given(NAMES)
def test_a_star_in_a_name_stands_for_what_a_name_may_hold(middle: str) -> None:
    policy = replace(Policy(), secret_names=("a*z",))
    allowed = not judge({"dataset": {"secretRef": {"name": f"a{middle}z"}}}, policy)
    assert allowed is (set(middle) <= set("az09.-"))


@given(st.dictionaries(st.sampled_from(["reference"]), st.text(min_size=1, max_size=512)))
def test_no_image_reference_is_too_odd_to_judge(image: dict[str, str]) -> None:
    for violation in judge({"image": image}, replace(Policy(), image_repositories=("ghcr.io",))):
        assert violation.message.isascii()
        assert "\n" not in violation.message


def test_a_star_alone_is_everything_also_beside_others() -> None:
    policy = replace(
        Policy(), image_repositories=("ghcr.io", ANYTHING), hub_token_hosts=(ANYTHING,),
        service_account_names=("x", ANYTHING), notification_hosts=("x", ANYTHING), insecure_notifications=True,
        publish_destinations=("s3://x", ANYTHING),
    )  # fmt: skip
    assert judge(EVERY_WAY, policy) == ()
