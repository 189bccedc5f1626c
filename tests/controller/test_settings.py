"""The environment: defaults, and what is said of a wrong one."""

import pytest

from llava_api.spec import Download, SecretRef
from llava_operator.settings import Settings, SettingsError

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
