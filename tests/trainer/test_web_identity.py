"""S3 by the pod's own identity: a token service, and an S3 server that takes its keys until they expire."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_api.failures import Reason
from llava_trainer.sources.web_identity import WebIdentity, read_web_identity
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.s3 import open_bucket, run_s3
from tests.trainer.servers.sts import TokenService
from tests.trainer.test_sources import MODEL, World, assert_same

FETCHED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
ROLE = "arn:aws:iam::123456789012:role/invoices"


@pytest.fixture
def service() -> TokenService:
    return TokenService()


@pytest.fixture
def world(service: TokenService, authority: Authority, tmp_path: Path) -> Iterator[World]:
    """A run without a Secret in a pod to which the platform has given a token."""
    made = World(tmp_path, authority)
    (tmp_path / "token").write_text("token-1")
    with service.run(authority) as sts, run_s3(authority, guard=service.guard) as s3:
        writer = open_bucket(s3, authority)
        writer.create_bucket(Bucket="private")
        for name, content in MODEL.items():
            writer.put_object(Bucket="private", Key=f"model/{name}", Body=content)
        made.environ |= {
            "AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"), "AWS_REGION": "eu-west-1",
            "AWS_ENDPOINT_URL_STS": sts, "AWS_ENDPOINT_URL_S3": s3,
        }  # fmt: skip
        made.model["source"] = "s3://private/model"
        yield made


def test_source_without_a_secret_is_fetched_as_the_pods_role(world: World, service: TokenService) -> None:
    assert_same(world.fetch()["model"].path, MODEL, FETCHED)
    [asked] = service.requests
    assert asked["Action"] == "AssumeRoleWithWebIdentity"
    assert (asked["RoleArn"], asked["WebIdentityToken"], asked["RoleSessionName"]) == (
        ROLE,
        "token-1",
        "llava-finetune",
    )
    assert set(service.used) == {"key-1"}


def test_keys_are_renewed_before_they_expire_with_the_token_of_then(world: World, service: TokenService) -> None:
    """The platform renews the token's file, and what comes after the listing is signed with keys that are good then."""
    service.lifetime_s, service.delay_s = 1.0, 1.2
    answer = service.answer

    def renew(request: dict[str, str]) -> tuple[int, bytes]:
        told = answer(request)
        (world.root / "token").write_text("token-2")
        return told

    service.answer = renew  # type: ignore[method-assign]
    assert_same(world.fetch()["model"].path, MODEL, FETCHED)
    assert [asked["WebIdentityToken"] for asked in service.requests[:2]] == ["token-1", "token-2"]
    assert service.used[0] == "key-1"
    assert "key-1" not in service.used[1:]


def test_secret_comes_before_the_pods_identity(world: World, service: TokenService) -> None:
    world.secret("model", endpoint=world.environ["AWS_ENDPOINT_URL_S3"])
    assert world.failure().reason is Reason.SOURCE_REFUSED, "asked anonymously, as the Secret without keys says"
    assert service.requests == []


def test_pod_without_an_identity_asks_anonymously(world: World, service: TokenService) -> None:
    world.environ.pop("AWS_ROLE_ARN")
    world.secret("model", endpoint=world.environ["AWS_ENDPOINT_URL_S3"])
    assert world.failure().reason is Reason.SOURCE_REFUSED
    assert service.requests == []


@pytest.mark.parametrize(
    ("refusals", "reason", "right"),
    [
        ([(403, "AccessDenied")], Reason.SOURCE_REFUSED, "or whom the role trusts"),
        ([(400, "InvalidIdentityToken")], Reason.SOURCE_REFUSED, "InvalidIdentityToken it is"),
        ([(503, "ServiceUnavailable")] * 99, Reason.SOURCE_UNAVAILABLE, "ServiceUnavailable it is"),
    ],
)
def test_identity_that_is_refused_names_role_and_field(
    world: World, service: TokenService, refusals: list[tuple[int, str]], reason: Reason, right: str
) -> None:
    service.refusals += refusals
    error = world.failure()
    assert error.reason is reason
    assert error.message.startswith(
        f"spec.model.source: the pod's identity could not be changed for keys of role {ROLE}"
    )
    assert right in error.message
    assert "token-1" not in error.message


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        (403, "AccessDenied", "may not read it: allow it s3:ListBucket of the bucket and s3:GetObject"),
        (401, "Unauthorized", "may not read it: allow it s3:ListBucket"),
        (403, "InvalidAccessKeyId", "are not taken there (InvalidAccessKeyId): look at AWS_ENDPOINT_URL_S3"),
        (400, "AuthorizationHeaderMalformed", "is in another region than AWS_REGION in the pod says"),
    ],
)
@pytest.mark.parametrize("what", ["the listing", "an object"])
def test_bucket_that_refuses_the_role_is_not_mended_by_a_secret(
    world: World, service: TokenService, status: int, code: str, wanted: str, what: str
) -> None:
    service.refuse(status, code, "list-type=" if what == "the listing" else "model.safetensors", times=99)
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert error.message.startswith("spec.model.source: s3://private/model")
    assert wanted in error.message
    assert ROLE in error.message or "region" in wanted
    assert "secretRef" not in error.message
    assert "key-1" not in error.message


def test_bucket_elsewhere_is_a_matter_of_the_pod(world: World) -> None:
    world.environ["AWS_ENDPOINT_URL_S3"] = "https://user:password@127.0.0.1"
    error = world.failure()
    assert error.message.startswith("AWS_ENDPOINT_URL_S3 in the pod must be an address like")
    assert "password" not in error.message


def test_keys_that_expire_on_the_way_are_worth_another_try(world: World, service: TokenService) -> None:
    """Which is signed anew."""
    service.refuse(403, "ExpiredToken", "model.safetensors", times=1)
    assert_same(world.fetch()["model"].path, MODEL, FETCHED)
    assert not service.forbidden


def test_service_that_is_away_for_a_moment_is_asked_again(world: World, service: TokenService) -> None:
    service.refusals += [(500, "InternalFailure")]
    world.fetch()
    assert len(service.requests) == 2


def test_service_that_cannot_be_reached_is_unavailable(world: World) -> None:
    world.environ["AWS_ENDPOINT_URL_STS"] = "https://127.0.0.1:1"
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "https://127.0.0.1:1" in error.message


def test_token_that_is_not_there_names_its_variable(world: World, service: TokenService) -> None:
    (world.root / "token").unlink()
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert "(AWS_WEB_IDENTITY_TOKEN_FILE) cannot be read (No such file or directory)" in error.message
    assert "spec.scheduling.serviceAccountName" in error.message
    assert service.requests == []


def test_what_is_read_of_the_environment() -> None:
    assert read_web_identity({}) is None
    assert read_web_identity({"AWS_ROLE_ARN": ROLE}) is None
    assert read_web_identity({"AWS_WEB_IDENTITY_TOKEN_FILE": "/token", "AWS_ROLE_ARN": ""}) is None
    both = {"AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}
    assert read_web_identity({**both, "AWS_ACCESS_KEY_ID": "x", "AWS_PROFILE": "y"}) == WebIdentity(
        role=ROLE, token_file=Path("/token"), session_name="llava-finetune"
    )
    said = {"AWS_ROLE_SESSION_NAME": "s", "AWS_DEFAULT_REGION": "eu-north-1", "AWS_ENDPOINT_URL": "https://minio"}
    assert read_web_identity({**both, **said, "AWS_ENDPOINT_URL_STS": "https://sts"}) == WebIdentity(
        role=ROLE, token_file=Path("/token"), session_name="s", region="eu-north-1", endpoint="https://minio",
        sts_endpoint="https://sts",
    )  # fmt: skip
