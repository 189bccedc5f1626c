"""The environment: defaults, and what is said of a wrong one."""

import json

import pytest

from llava_api.spec import Download, SecretRef
from llava_operator.deciding.policy import Policy
from llava_operator.settings import Settings, SettingsError
from tests.policies import WRONG_DESTINATIONS, WRONG_HOSTS, WRONG_NAMES, WRONG_REPOSITORIES, policy_of

IMAGE = {"repository": "trainer", "tag": "1"}
REQUIRED = {
    "LLAVA_OPERATOR_NAMESPACE": "system",
    "LLAVA_OPERATOR_POD_NAME": "op-0",
    "LLAVA_OPERATOR_POD_IP": "10.0.0.1",
    "LLAVA_OPERATOR_TRAINER_IMAGE": "trainer:1",
}


def read(**changes: str) -> Settings:
    return Settings.from_environment({**REQUIRED, **{f"LLAVA_OPERATOR_{key}": value for key, value in changes.items()}})


def test_names_follow_from_the_installations_name() -> None:
    settings = read(NAME="mine")
    assert (settings.lease_name, settings.report_service, settings.report_secret, settings.report_host) == (
        "mine",
        "mine-report",
        "mine-report-ca",
        "mine-report.system.svc",
    )


def test_other_variables_are_none_of_our_business() -> None:
    assert Settings.from_environment({**REQUIRED, "PATH": "/bin"}) == read()


@pytest.mark.parametrize(("text", "namespaces"), [("", ()), ("a", ("a",)), (" a, b ,", ("a", "b"))])
def test_namespaces_are_separated_by_commas(text: str, namespaces: tuple[str, ...]) -> None:
    assert read(WATCH_NAMESPACES=text).watch_namespaces == namespaces


def test_downloads_of_runs_that_do_not_say_how() -> None:
    assert read().download == Download()
    settings = read(HUB_ENDPOINT="https://mirror", HTTP_PROXY="http://p:1", HTTPS_PROXY="http://p:2", NO_PROXY=".svc",
                    DOWNLOAD_CA_CONFIG_MAP="corporate", DOWNLOAD_SECRET="proxies")  # fmt: skip
    assert settings.download == Download(
        hub_endpoint="https://mirror", http_proxy="http://p:1", https_proxy="http://p:2", no_proxy=".svc",
        ca_config_map="corporate", secret_ref=SecretRef(name="proxies"),
    )  # fmt: skip


def test_rules_for_runs_that_the_installer_leaves_alone_restrict_hub_tokens_only() -> None:
    assert read().policy == Policy(trainer_image="trainer:1") == policy_of({"trainerImage": IMAGE})


def test_rules_for_runs() -> None:
    settings = read(
        HUB_ENDPOINT="https://mirror",
        POLICY_IMAGE_REPOSITORIES="registry.example/team, docker.io/library/llava,localhost:5000",
        POLICY_SECRET_NAMES="llava-*,hub", POLICY_CA_CONFIG_MAPS="", POLICY_HUB_TOKEN_HOSTS="hub.example:8443",
        POLICY_WEB_CREDENTIAL_HOSTS="*", POLICY_TOLERATIONS="false",
        POLICY_SERVICE_ACCOUNT_NAMES="llava-*,default",
        POLICY_PUBLISH_DESTINATIONS="s3://models, oci://r.example:5000/team,hf://Org_1/x",
    )  # fmt: skip
    assert settings.policy == Policy(
        trainer_image="trainer:1", hub_endpoint="https://mirror",
        image_repositories=("registry.example/team", "docker.io/library/llava", "localhost:5000"),
        secret_names=("llava-*", "hub"), ca_config_maps=(), hub_token_hosts=("hub.example:8443",),
        web_credential_hosts=("*",), tolerations=False, service_account_names=("llava-*", "default"),
        publish_destinations=("s3://models", "oci://r.example:5000/team", "hf://Org_1/x"),
    )  # fmt: skip


@pytest.mark.parametrize("value", WRONG_REPOSITORIES)
def test_what_is_no_repository_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"POLICY_IMAGE_REPOSITORIES: .*must be REGISTRY or REGISTRY/PATH"):
        read(POLICY_IMAGE_REPOSITORIES=value)


@pytest.mark.parametrize("value", WRONG_NAMES)
@pytest.mark.parametrize("variable", ["POLICY_SECRET_NAMES", "POLICY_CA_CONFIG_MAPS", "POLICY_SERVICE_ACCOUNT_NAMES"])
def test_what_is_no_pattern_of_names_is_refused(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"{variable}: .*must be a name, in which \* stands for any part"):
        read(**{variable: value})


@pytest.mark.parametrize("value", WRONG_HOSTS)
@pytest.mark.parametrize(
    "variable", ["POLICY_HUB_TOKEN_HOSTS", "POLICY_WEB_CREDENTIAL_HOSTS", "POLICY_NOTIFICATION_HOSTS"]
)
def test_what_is_no_host_is_refused(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable}: .*must be HOST or HOST:PORT in lower case"):
        read(**{variable: value})


@pytest.mark.parametrize("value", WRONG_DESTINATIONS)
def test_what_is_no_place_to_publish_to_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"POLICY_PUBLISH_DESTINATIONS: .*must be s3://BUCKET, hf://OWNER, oci://"):
        read(POLICY_PUBLISH_DESTINATIONS=value)


def test_too_many_rules_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"POLICY_SECRET_NAMES: .*has 17 entries, but may have 16"):
        read(POLICY_SECRET_NAMES=",".join(["a"] * 17))


def test_xet_is_used_where_the_installation_says_so() -> None:
    assert not read().download_xet
    assert read(DOWNLOAD_XET="true").download_xet


def test_training_is_isolated_where_the_installation_says_so() -> None:
    assert not read().isolate_training
    assert read(ISOLATE_TRAINING="true").isolate_training


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TYPO", "1", "LLAVA_OPERATOR_TYPO: Extra inputs are not permitted"),
        ("ISOLATE_TRAINING", "perhaps", "LLAVA_OPERATOR_ISOLATE_TRAINING: Input should be a valid boolean"),
        ("HTTP_PORT", "0", "LLAVA_OPERATOR_HTTP_PORT: Input should be greater than or equal to 1"),
        ("RESYNC_SECONDS", "soon", "LLAVA_OPERATOR_RESYNC_SECONDS: Input should be a valid number"),
        ("POLICY_TOLERATIONS", "some", "LLAVA_OPERATOR_POLICY_TOLERATIONS: Input should be a valid boolean"),
        ("LOG_LEVEL", "loud", "LLAVA_OPERATOR_LOG_LEVEL: Input should be 'debug', 'info', 'warning' or 'error'"),
        ("LEASE_RENEW_DEADLINE_SECONDS", "15", "are 2, 15 and 15, but each must be greater"),
        ("LEASE_RETRY_SECONDS", "11", "are 11, 10 and 15, but each must be greater"),
    ],
)
def test_wrong_values_are_refused_by_name(variable: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(**{variable: value})
    assert message in str(caught.value)


def test_every_missing_variable_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({})
    for name in REQUIRED:
        assert f"{name}: Field required" in str(caught.value)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_labels_and_annotations_of_pods_are_json_objects() -> None:
    assert read(STAGE_POD_LABELS="").stage_pod_labels == {}
    settings = read(STAGE_POD_LABELS='{"a.b/c": "d", "e": ""}', STAGE_POD_ANNOTATIONS='{"a": "any {text}"}')
    assert settings.stage_pod_labels == {"a.b/c": "d", "e": ""}
    assert settings.stage_pod_annotations == {"a": "any {text}"}


@pytest.mark.parametrize("name", ["STAGE_POD_LABELS", "STAGE_POD_ANNOTATIONS"])
@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("team=vision", "must be a JSON object of texts"),
        ("[" * 100_000, "must be a JSON object of texts"),
        ("[]", "dictionary"),
        ('{"a": 1}', "string"),
        ('{"a/b/c": ""}', "must be NAME or DOMAIN/NAME"),
        ('{"A.b/c": ""}', "must be NAME or DOMAIN/NAME"),
        ('{"": ""}', "must be NAME or DOMAIN/NAME"),
        ('{"finetune.llava.dev/run": "x"}', "finetune.llava.dev/run is set by the operator"),
        ('{"app.kubernetes.io/managed-by": "x"}', "app.kubernetes.io/managed-by is set by the operator"),
        ('{"batch.kubernetes.io/job-name": "x"}', "leave it out"),
        ('{"job-name": "x"}', "leave it out"),
        (json.dumps({f"a{n}": "" for n in range(33)}), "has 33 entries, but may have 32"),
    ],
)  # fmt: skip
def test_labels_and_annotations_that_no_pod_may_have_are_refused(name: str, text: str, right: str) -> None:
    with pytest.raises(SettingsError, match=f"LLAVA_OPERATOR_{name}") as caught:
        read(**{name: text})
    assert right in str(caught.value)


def test_values_of_labels_are_narrower_than_those_of_annotations() -> None:
    with pytest.raises(SettingsError, match="a: 'two words' must have at most 63 letters"):
        read(STAGE_POD_LABELS='{"a": "two words"}')
    with pytest.raises(SettingsError, match="at most 16384 characters together"):
        read(STAGE_POD_ANNOTATIONS=json.dumps({"a": "x" * 16_385}))


@pytest.mark.parametrize("seconds", ["-1", "3601", "soon"])
def test_how_long_pods_stay_on_a_lost_node_has_bounds(seconds: str) -> None:
    assert read(NODE_LOSS_SECONDS="0").node_loss_seconds == 0
    with pytest.raises(SettingsError, match="LLAVA_OPERATOR_NODE_LOSS_SECONDS"):
        read(NODE_LOSS_SECONDS=seconds)


@pytest.mark.parametrize("label", ["", "team", "example.com/team", "app.kubernetes.io/part-of"])
def test_label_of_a_runs_team(label: str) -> None:
    assert read(METRICS_TEAM_LABEL=label).metrics_team_label == label


@pytest.mark.parametrize("label", ["no label", "a/b/c", "/team", "-team", "a" * 64])
def test_what_no_label_may_be_called_is_no_teams(label: str) -> None:
    with pytest.raises(SettingsError, match=r"METRICS_TEAM_LABEL: .* must be NAME or DOMAIN/NAME"):
        read(METRICS_TEAM_LABEL=label)


def test_time_for_which_ended_runs_are_told_of() -> None:
    assert read(METRICS_FINISHED_RUN_SECONDS="0").metrics_finished_run_seconds == 0
    for text in ("-1", "31536001", "1h"):
        with pytest.raises(SettingsError, match="METRICS_FINISHED_RUN_SECONDS"):
            read(METRICS_FINISHED_RUN_SECONDS=text)
