"""How the chart has the operator's metrics served and found."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_operator.settings import Settings
from tests.chart.test_chart import environment_of, objects, refusal, rules, settings_of
from tests.rendering import ROOT

NAME, NAMESPACE = "llava-finetune-operator", "llava-system"
SECURE = ("--set", "metrics.secure=true")
CERTIFICATE = ("--set", "metrics.certificateSecret=metrics-tls")
MONITOR = ("--set", "metrics.serviceMonitor.enabled=true")
Rendered = dict[tuple[str, str, str], dict[str, Any]]


def pod_of(rendered: Rendered) -> dict[str, Any]:
    pod: dict[str, Any] = rendered["Deployment", NAMESPACE, NAME]["spec"]["template"]
    return pod


def ports_of(rendered: Rendered) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in pod_of(rendered)["spec"]["containers"][0]["ports"]}


def service_port(rendered: Rendered) -> dict[str, Any]:
    [port] = rendered["Service", NAMESPACE, f"{NAME}-metrics"]["spec"]["ports"]
    found: dict[str, Any] = port
    return found


def endpoint_of(rendered: Rendered) -> dict[str, Any]:
    [endpoint] = rendered["ServiceMonitor", NAMESPACE, NAME]["spec"]["endpoints"]
    found: dict[str, Any] = endpoint
    return found


def test_metrics_are_plain_by_default(helm: Path) -> None:
    rendered = objects(helm)
    assert service_port(rendered) == {"name": "metrics", "port": 8080, "targetPort": "http", "protocol": "TCP"}
    assert ports_of(rendered) == {"http": 8080, "report": 8443}
    assert settings_of(rendered).metrics_secure is False
    assert "prometheus.io/scrape" not in pod_of(rendered)["metadata"]["annotations"]
    assert not [key for key in rendered if key[0] == "ServiceMonitor" or "metrics-reader" in key[2]]


def test_secure_metrics_have_a_port_of_their_own(helm: Path) -> None:
    rendered = objects(helm, *SECURE)
    assert service_port(rendered) == {"name": "metrics", "port": 8444, "targetPort": "metrics", "protocol": "TCP"}
    assert ports_of(rendered) == {"http": 8080, "report": 8443, "metrics": 8444}
    settings = settings_of(rendered)
    assert (settings.metrics_secure, settings.metrics_certificate_secret) == (True, "")
    assert settings.metrics_port == ports_of(rendered)["metrics"]
    assert settings.metrics_host == f"{NAME}-metrics.{NAMESPACE}.svc"
    probes = pod_of(rendered)["spec"]["containers"][0]
    assert probes["livenessProbe"]["httpGet"]["port"] == probes["readinessProbe"]["httpGet"]["port"] == "http"


def test_the_rights_that_it_takes_come_with_it(helm: Path) -> None:
    right = {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]}
    assert right not in rules(helm)
    for arguments in ((), ("--set", "watchNamespaces={team-a}")):
        rendered = objects(helm, *SECURE, *arguments)
        assert right in rendered["ClusterRole", "", NAME]["rules"]
        assert rules(helm, *SECURE, *arguments).count(right) == 1


def test_a_role_is_made_for_readers_and_bound_to_nobody(helm: Path) -> None:
    rendered = objects(helm, *SECURE)
    reader = f"{NAME}-metrics-reader"
    assert rendered["ClusterRole", "", reader]["rules"] == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    bindings = [one for key, one in rendered.items() if key[0].endswith("RoleBinding")]
    assert bindings
    assert not [one for one in bindings if one["roleRef"]["name"] == reader]


def test_certificate_of_the_installer_is_read_and_nothing_more(helm: Path) -> None:
    reading = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["metrics-tls"], "verbs": ["get"]}
    assert reading not in rules(helm, *CERTIFICATE), "without secure there is no use for it"
    assert "LLAVA_OPERATOR_METRICS_CERTIFICATE_SECRET" not in environment_of(objects(helm, *CERTIFICATE))
    rendered = objects(helm, *SECURE, *CERTIFICATE)
    assert reading in rendered["Role", NAMESPACE, f"{NAME}-own"]["rules"]
    assert settings_of(rendered).metrics_certificate_secret == "metrics-tls"


@pytest.mark.parametrize(("arguments", "port"), [((), "http"), (SECURE, "metrics")])
def test_network_policy_opens_the_port_that_serves_metrics(helm: Path, arguments: tuple[str, ...], port: str) -> None:
    peers = [{"podSelector": {}}]
    rendered = objects(
        helm, *arguments, "--set", "networkPolicy.enabled=true",
        "--set-json", f"networkPolicy.metricsFrom={json.dumps(peers)}",
    )  # fmt: skip
    ingress = rendered["NetworkPolicy", NAMESPACE, NAME]["spec"]["ingress"]
    assert ingress == [
        {"ports": [{"port": "report", "protocol": "TCP"}]},
        {"ports": [{"port": port, "protocol": "TCP"}], "from": peers},
    ]
    assert {rule["ports"][0]["port"] for rule in ingress} <= ports_of(rendered).keys()


@pytest.mark.parametrize(("arguments", "port", "scheme"), [((), "8080", "http"), (SECURE, "8444", "https")])
def test_annotations_lead_to_the_port_that_serves_metrics(
    helm: Path, arguments: tuple[str, ...], port: str, scheme: str
) -> None:
    rendered = objects(
        helm, *arguments, "--set", "metrics.scrapeAnnotations=true", "--set-string", "podAnnotations.own=x"
    )
    assert pod_of(rendered)["metadata"]["annotations"] == {
        "kubectl.kubernetes.io/default-container": "operator",
        "prometheus.io/scrape": "true",
        "prometheus.io/scheme": scheme,
        "prometheus.io/port": port,
        "prometheus.io/path": "/metrics",
        "own": "x",
    }
    assert int(port) in ports_of(rendered).values()
    for key, one in rendered.items():
        # On a Service as well they would have everything scraped twice.
        assert key[0] != "Service" or "annotations" not in one["metadata"]


def test_service_monitor_selects_the_service_of_metrics_alone(helm: Path) -> None:
    rendered = objects(
        helm, *MONITOR, "--set", "metrics.serviceMonitor.labels.release=prom,metrics.serviceMonitor.interval=30s"
    )
    monitor = rendered["ServiceMonitor", NAMESPACE, NAME]
    assert monitor["metadata"]["labels"]["release"] == "prom"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    selected = [
        key[2] for key, one in rendered.items() if key[0] == "Service" and wanted <= one["metadata"]["labels"].items()
    ]
    assert selected == [f"{NAME}-metrics"]
    assert endpoint_of(rendered) == {"port": "metrics", "path": "/metrics", "honorLabels": True, "interval": "30s"}
    assert service_port(rendered)["name"] == "metrics"


def test_service_monitor_keeps_our_labels_whatever_is_asked_for(helm: Path) -> None:
    assert endpoint_of(objects(helm, *MONITOR))["honorLabels"] is True
    assert "additional properties 'honorLabels' not allowed" in refusal(
        helm, *MONITOR, "--set", "metrics.serviceMonitor.honorLabels=false"
    )


def test_service_monitor_of_secure_metrics_trusts_the_operators_authority(helm: Path) -> None:
    rendered = objects(helm, *MONITOR, *SECURE)
    assert endpoint_of(rendered) == {
        "port": "metrics", "path": "/metrics", "honorLabels": True, "scheme": "https",
        "bearerTokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "tlsConfig": {
            "serverName": f"{NAME}-metrics.{NAMESPACE}.svc",
            "ca": {"secret": {"name": f"{NAME}-report-ca", "key": "tls.crt"}},
        },
    }  # fmt: skip
    assert ("Secret", NAMESPACE, f"{NAME}-report-ca") in rendered


def test_service_monitor_trusts_who_signed_the_installers_certificate(helm: Path) -> None:
    token = "metrics.serviceMonitor.tokenSecret.name=scraper"
    endpoint = endpoint_of(objects(helm, *MONITOR, *SECURE, *CERTIFICATE, "--set", token))
    assert endpoint["tlsConfig"]["ca"] == {"secret": {"name": "metrics-tls", "key": "ca.crt"}}
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": {"name": "scraper", "key": "token"}}
    assert "bearerTokenFile" not in endpoint


def test_service_monitor_may_trust_otherwise(helm: Path) -> None:
    endpoint = endpoint_of(
        objects(helm, *MONITOR, *SECURE, "--set", "metrics.serviceMonitor.tlsConfig.insecureSkipVerify=true")
    )
    assert endpoint["tlsConfig"] == {"insecureSkipVerify": True}


@pytest.mark.parametrize("wrong", ["metrics.secure=yes", "metrics.port=9", "metrics.serviceMonitor.interval=soon"])
def test_values_that_make_no_sense_are_refused(helm: Path, wrong: str) -> None:
    assert "values don't meet the specifications of the schema" in refusal(helm, "--set", wrong)


def test_default_ports_of_the_operator_are_the_charts() -> None:
    fields = Settings.model_fields
    assert (fields["http_port"].default, fields["report_port"].default) == (8080, 8443)
    assert fields["metrics_port"].default == 8444


def test_which_label_is_the_team_and_how_long_ended_runs_are_told_of(helm: Path) -> None:
    settings = settings_of(objects(helm))
    assert settings.metrics_team_label == Settings.model_fields["metrics_team_label"].default == "team"
    shown_s = Settings.model_fields["metrics_finished_run_seconds"].default
    assert settings.metrics_finished_run_seconds == shown_s == 3600
    # Helm has large numbers as 2.592e+06.
    changes = ("--set", "metrics.teamLabel=example.com/group", "--set", "metrics.finishedRunSeconds=2592000")
    settings = settings_of(objects(helm, *changes))
    assert (settings.metrics_team_label, settings.metrics_finished_run_seconds) == ("example.com/group", 2_592_000)
    settings = settings_of(objects(helm, "--set", "metrics.teamLabel=", "--set", "metrics.finishedRunSeconds=0"))
    assert (settings.metrics_team_label, settings.metrics_finished_run_seconds) == ("", 0)


@pytest.mark.parametrize("change", ["teamLabel=no label", "teamLabel=a/b/c", "finishedRunSeconds=-1"])
def test_what_is_no_label_and_no_time_is_refused(helm: Path, change: str) -> None:
    assert change.partition("=")[0] in refusal(helm, "--set", f"metrics.{change}")


# --- what docs/monitoring.md says

PAGE = (ROOT / "docs" / "monitoring.md").read_text()
SAMPLES = [made for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) for made in yaml.safe_load_all(block)]


def test_the_page_binds_the_role_that_the_chart_makes(helm: Path) -> None:
    bindings = [made for made in SAMPLES if made.get("kind") == "ClusterRoleBinding"]
    assert len(bindings) == 2
    roles = {key[2] for key in objects(helm, *SECURE) if key[0] == "ClusterRole"}
    assert {made["roleRef"]["name"] for made in bindings} == {f"{NAME}-metrics-reader"} <= roles


def test_the_page_names_what_is_served(helm: Path) -> None:
    rendered = objects(helm, *SECURE, *MONITOR)
    tls = endpoint_of(rendered)["tlsConfig"]
    [certificate] = [made for made in SAMPLES if made.get("kind") == "Certificate"]
    assert certificate["spec"]["dnsNames"] == [tls["serverName"]]
    [config] = [made["scrape_configs"][0] for made in SAMPLES if "scrape_configs" in made]
    assert config["tls_config"]["server_name"] == tls["serverName"]
    assert config["honor_labels"] is True
    [relabel] = config["relabel_configs"]
    assert relabel["regex"] == f"{NAME}-metrics;{service_port(rendered)['name']}"
    [scraper] = [made["metadata"]["name"] for made in SAMPLES if made.get("kind") == "Secret"]
    assert f"metrics.serviceMonitor.tokenSecret.name={scraper}" in PAGE


def test_the_page_sets_values_that_there_are() -> None:
    values = yaml.safe_load((ROOT / "charts" / NAME / "values.yaml").read_text())["metrics"]
    said = set(re.findall(r"metrics\.((?:serviceMonitor\.)?\w+)", PAGE)) - {"md", "llava", "finishedRunSeconds"}
    known = {*values, *(f"serviceMonitor.{key}" for key in values["serviceMonitor"])}
    assert said <= known
