"""The Helm chart: what it renders, what it refuses, and how little it asks for."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_api import addresses
from llava_api.crd import build_crd
from llava_api.spec import Spec
from llava_operator.deciding import image_references, policy
from llava_operator.deciding.violations import publishing, violation
from llava_operator.settings import Settings
from tests.policies import (
    EVERYTHING,
    INSTALLATIONS,
    WRONG_DESTINATIONS,
    WRONG_HOSTS,
    WRONG_NAMES,
    WRONG_REPOSITORIES,
    policy_of,
)
from tests.rendering import CHART, KUBE_VERSION, ROOT, render, render_base

SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))


def objects(helm: Path, *arguments: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Rendered objects by kind, namespace and name."""
    found = [document for document in yaml.safe_load_all(render(helm, *arguments)) if document]
    keyed = {(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]): one for one in found}
    assert len(keyed) == len(found), "two objects of one name"
    return keyed


def refusal(helm: Path, *arguments: str) -> str:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(helm, *arguments)
    return str(caught.value.stderr)


def test_lint(helm: Path) -> None:
    subprocess.run([helm, "lint", "--strict", *KUBE_VERSION, str(CHART)], check=True, capture_output=True)


def test_default_objects(helm: Path) -> None:
    name, namespace = "llava-finetune-operator", "llava-system"
    assert set(objects(helm)) == {
        ("ServiceAccount", namespace, name),
        ("ClusterRole", "", name),
        ("ClusterRoleBinding", "", name),
        ("Role", namespace, f"{name}-own"),
        ("RoleBinding", namespace, f"{name}-own"),
        ("Service", namespace, f"{name}-report"),
        ("Service", namespace, f"{name}-metrics"),
        ("Secret", namespace, f"{name}-report-ca"),
        ("Deployment", namespace, name),
        ("CustomResourceDefinition", "", "llavafinetunes.finetune.llava.dev"),
    }


def test_crd_is_the_generated_one_and_kept_on_uninstall(helm: Path) -> None:
    crd = objects(helm)["CustomResourceDefinition", "", "llavafinetunes.finetune.llava.dev"]
    assert crd == build_crd()
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_crd_can_be_left_out(helm: Path) -> None:
    assert not [key for key in objects(helm, "--set", "crd.install=false") if key[0] == "CustomResourceDefinition"]


def rules(helm: Path, *arguments: str) -> list[dict[str, Any]]:
    roles = [one for key, one in objects(helm, *arguments).items() if key[0] in ("Role", "ClusterRole")]
    return [rule for role in roles for rule in role["rules"]]


def test_operator_asks_for_little(helm: Path) -> None:
    for rule in rules(helm):
        assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
        assert not {"deletecollection", "escalate", "bind", "impersonate"} & set(rule["verbs"])
        assert "delete" not in rule["verbs"] or rule["resources"] in (["jobs"], ["configmaps"], ["llavafinetunes"])
        if "secrets" in rule["resources"]:
            assert rule["verbs"] == ["get", "patch"]
            assert rule["resourceNames"] == ["llava-finetune-operator-report-ca"]


def test_watching_some_namespaces_needs_no_cluster_wide_rights_but_one(helm: Path) -> None:
    rendered = objects(helm, "--set", "watchNamespaces={team-a,team-b}")
    cluster_role = rendered["ClusterRole", "", "llava-finetune-operator"]
    assert cluster_role["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    for namespace in ("team-a", "team-b"):
        role = rendered["Role", namespace, "llava-finetune-operator"]
        assert {"llavafinetunes/status"} in [set(rule["resources"]) for rule in role["rules"]]
        binding = rendered["RoleBinding", namespace, "llava-finetune-operator"]
        assert binding["subjects"][0]["namespace"] == "llava-system"
    environment = environment_of(rendered)
    assert environment["LLAVA_OPERATOR_WATCH_NAMESPACES"] == "team-a,team-b"


def test_reading_nodes_can_be_switched_off(helm: Path) -> None:
    reading = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}
    assert reading in rules(helm)
    assert reading not in rules(helm, "--set", "readNodes=false")


def test_isolating_training_is_asked_for_with_the_right_that_it_takes(helm: Path) -> None:
    right = {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["get", "create"]}
    assert right not in rules(helm)
    assert "LLAVA_OPERATOR_ISOLATE_TRAINING" not in environment_of(objects(helm))
    for arguments in ((), ("--set", "watchNamespaces={team-a}")):
        assert rules(helm, "--set", "isolateTraining=true", *arguments).count(right) == 1
    environment = environment_of(objects(helm, "--set", "isolateTraining=true"))
    assert environment["LLAVA_OPERATOR_ISOLATE_TRAINING"] == "true"


def environment_of(rendered: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, str]:
    [deployment] = [one for key, one in rendered.items() if key[0] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def test_every_setting_in_the_chart_is_one_of_the_operator(helm: Path) -> None:
    prefix = "LLAVA_OPERATOR_"
    known = {f"{prefix}{name.upper()}" for name in Settings.model_fields}
    assert set(environment_of(objects(helm))) <= known


def test_pods_of_runs_are_spared_by_autoscalers_and_sidecars(helm: Path) -> None:
    """What the operator makes of the chart's own values, and of others."""
    off, read = {"sidecar.istio.io/inject": "false"}, settings_of(objects(helm))
    assert (read.node_loss_seconds, read.stage_pod_labels) == (30, off)
    assert read.stage_pod_annotations == off | {
        "karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }  # fmt: skip
    read = settings_of(objects(
        helm, "--set", "stagePods.nodeLossSeconds=5", "--set-string", "stagePods.labels.team=vision",
        "--set", r"stagePods.labels.sidecar\.istio\.io/inject=null", "--set", "stagePods.annotations=null",
    ))  # fmt: skip
    assert (read.node_loss_seconds, read.stage_pod_labels, read.stage_pod_annotations) == (5, {"team": "vision"}, {})


def settings_of(rendered: dict[tuple[str, str, str], dict[str, Any]]) -> Settings:
    own = {"NAMESPACE": "llava-system", "POD_NAME": "op", "POD_IP": "192.0.2.1"}
    return Settings.from_environment(environment_of(rendered) | {f"LLAVA_OPERATOR_{k}": v for k, v in own.items()})


def test_how_runs_fetch_is_a_setting(helm: Path) -> None:
    """Every key of it reaches the operator, and none of them does while it is empty."""
    keys = yaml.safe_load((CHART / "values.yaml").read_text())["download"]
    plain = set(environment_of(objects(helm)))
    values = {key: f"https://{key}" for key, default in keys.items() if default == ""}
    settings = ",".join(f"download.{key}={value}" for key, value in values.items())
    environment = environment_of(objects(helm, "--set-string", settings, "--set", "download.xet=true"))
    added = {name.removeprefix("LLAVA_OPERATOR_"): environment[name] for name in set(environment) - plain}
    assert added == {
        "HUB_ENDPOINT": values["hubEndpoint"],
        "HTTP_PROXY": values["httpProxy"],
        "HTTPS_PROXY": values["httpsProxy"],
        "NO_PROXY": values["noProxy"],
        "DOWNLOAD_CA_CONFIG_MAP": values["caConfigMap"],
        "DOWNLOAD_SECRET": values["secret"],
        "DOWNLOAD_XET": "true",
    }


def test_rules_for_runs_reach_the_operator(helm: Path, tmp_path: Path) -> None:
    """What the operator makes of its environment is what the table of cases takes the same values for."""
    for name, values in INSTALLATIONS.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(values))
        environment = environment_of(objects(helm, "--values", str(file)))
        given = {key: value for key, value in environment.items() if value}
        given |= {key: value for key, value in environment.items() if "_POLICY_" in key}
        settings = Settings.from_environment(
            {**given, "LLAVA_OPERATOR_NAMESPACE": "n", "LLAVA_OPERATOR_POD_NAME": "p", "LLAVA_OPERATOR_POD_IP": "i"}
        )
        assert settings.policy == policy_of(values), name


def test_rules_for_runs_are_by_default_those_of_the_operator(helm: Path) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["policy"]
    assert values.pop("admission") is False
    default = Settings(namespace="n", pod_name="p", pod_ip="i", trainer_image="t")
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()} == {
        "imageRepositories": default.policy_image_repositories,
        "secretNames": default.policy_secret_names,
        "caConfigMaps": default.policy_ca_config_maps,
        "hubTokenHosts": default.policy_hub_token_hosts,
        "webCredentialHosts": default.policy_web_credential_hosts,
        "pictureHosts": default.policy_picture_hosts,
        "notificationHosts": default.policy_notification_hosts,
        "trackingHosts": default.policy_tracking_hosts,
        "publishDestinations": default.policy_publish_destinations,
        "insecureNotifications": default.policy_insecure_notifications,
        "tolerations": default.policy_tolerations,
        "serviceAccountNames": default.policy_service_account_names,
    }


@pytest.mark.parametrize(
    "key",
    [
        "imageRepositories",
        "secretNames",
        "caConfigMaps",
        "hubTokenHosts",
        "notificationHosts",
        "trackingHosts",
        "serviceAccountNames",
    ],
)
def test_a_list_that_is_taken_away_allows_nothing(helm: Path, key: str) -> None:
    environment = environment_of(objects(helm, "--set", f"policy.{key}=null"))
    name = re.sub("([A-Z])", r"_\1", key).upper()
    assert environment[f"LLAVA_OPERATOR_POLICY_{name}"] == ""


ADMISSION_KINDS = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}


def test_admission_policy_is_installed_where_it_is_asked_for(helm: Path) -> None:
    assert not ADMISSION_KINDS & {key[0] for key in objects(helm)}
    rendered = objects(helm, "--set", "policy.admission=true")
    policy, binding = (rendered[kind, "", "llava-finetune-operator"] for kind in sorted(ADMISSION_KINDS))
    assert policy["spec"]["failurePolicy"] == "Fail"
    assert policy["spec"]["matchConstraints"]["resourceRules"] == [
        {"apiGroups": ["finetune.llava.dev"], "apiVersions": ["v1alpha1"], "operations": ["CREATE", "UPDATE"],
         "resources": ["llavafinetunes"]}
    ]  # fmt: skip
    assert binding["spec"] == {"policyName": "llava-finetune-operator", "validationActions": ["Deny"]}


def test_admission_policy_looks_at_the_watched_namespaces_alone(helm: Path) -> None:
    rendered = objects(helm, "--set", "policy.admission=true,watchNamespaces={team-a,team-b}")
    binding = rendered["ValidatingAdmissionPolicyBinding", "", "llava-finetune-operator"]
    assert binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"] == [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"]}
    ]


def test_there_is_no_admission_policy_without_rules(helm: Path, tmp_path: Path) -> None:
    """The API server takes none that has nothing to refuse."""
    (tmp_path / "values.json").write_text(json.dumps(EVERYTHING))
    rendered = objects(helm, "--values", str(tmp_path / "values.json"), "--set", "policy.admission=true")
    assert not ADMISSION_KINDS & {key[0] for key in rendered}


def test_admission_policy_reads_images_and_addresses_as_the_operator_does(helm: Path, tmp_path: Path) -> None:
    (tmp_path / "values.json").write_text(json.dumps(INSTALLATIONS["strict"]))
    rendered = objects(helm, "--values", str(tmp_path / "values.json"), "--set", "policy.admission=true")
    text = json.dumps(rendered["ValidatingAdmissionPolicy", "", "llava-finetune-operator"])
    patterns = (
        image_references.IMAGE, image_references.REPOSITORY, image_references.HAS_REGISTRY,
        violation.SHOWABLE, violation.SHOWABLE_ADDRESS, violation.HIDDEN, publishing.PLACE, publishing.DESTINATION,
        addresses.ADDRESS, addresses.ADDRESS_HOST, addresses.ANY_ADDRESS, addresses.ANY_HOST,
    )  # fmt: skip
    for pattern in patterns:
        assert pattern in text


def test_values_schema_has_the_operators_patterns() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    lists = {
        policy.ALLOWED_REPOSITORY: schema["properties"]["policy"]["properties"]["imageRepositories"],
        policy.ALLOWED_NAME: schema["definitions"]["names"],
        policy.ALLOWED_HOST: schema["definitions"]["hosts"],
        policy.ALLOWED_DESTINATION: schema["properties"]["policy"]["properties"]["publishDestinations"],
    }
    for pattern, found in lists.items():
        entry = {"type": "string", "maxLength": policy.MAX_ENTRY, "pattern": pattern}
        assert found == {"type": "array", "maxItems": policy.MAX_ENTRIES, "items": entry}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("imageRepositories", WRONG_REPOSITORIES),
        ("secretNames", WRONG_NAMES),
        ("hubTokenHosts", WRONG_HOSTS),
        ("publishDestinations", WRONG_DESTINATIONS),
    ],
    ids=["repositories", "names", "hosts", "destinations"],
)
def test_chart_refuses_entries_that_the_operator_refuses(helm: Path, key: str, wrong: tuple[str, ...]) -> None:
    told = refusal(helm, "--set-json", f"policy.{key}={json.dumps(wrong)}")
    assert sorted(set(re.findall(rf"/policy/{key}/(\d+)'", told)), key=int) == [str(n) for n in range(len(wrong))]


def test_whoever_may_reach_metrics_is_a_setting(helm: Path) -> None:
    """Closed to pods but for those that are named; the port for progress is open to the pods of all namespaces."""
    assert "NetworkPolicy" not in {key[0] for key in objects(helm)}
    key = ("NetworkPolicy", "llava-system", "llava-finetune-operator")
    closed = objects(helm, "--set", "networkPolicy.enabled=true")
    [deployment] = [one for kind, one in closed.items() if kind[0] == "Deployment"]
    spec = closed[key]["spec"]
    assert spec["podSelector"] == deployment["spec"]["selector"]
    assert (spec["policyTypes"], spec["ingress"]) == (["Ingress"], [{"ports": [{"port": "report", "protocol": "TCP"}]}])
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    opened = objects(
        helm, "--set", "networkPolicy.enabled=true", "--set-json", f"networkPolicy.metricsFrom={json.dumps(peers)}"
    )
    assert opened[key]["spec"]["ingress"][1] == {"ports": [{"port": "http", "protocol": "TCP"}], "from": peers}
    ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {"report", "http"}


@pytest.mark.parametrize("version", ["1.29.0", "1.30.0", "v1.30.14", "1.30.99-gke.1"])
def test_kubernetes_that_ends_jobs_before_their_pods_is_refused(helm: Path, version: str) -> None:
    assert "requires kubeVersion: >=1.31.0-0" in refusal(helm, "--kube-version", version)


@pytest.mark.parametrize("version", ["1.31.0", "v1.31.0-eks.2", "1.36.1"])
def test_later_kubernetes_is_taken(helm: Path, version: str) -> None:
    assert objects(helm, "--kube-version", version)


def test_oldest_kubernetes_is_told() -> None:
    floor = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert floor == ">=1.31.0-0"
    assert "You need Kubernetes 1.31 or later" in (ROOT / "README.md").read_text()


def test_names_follow_the_release(helm: Path) -> None:
    rendered = objects(helm, "--set", "nameOverride=tuner")
    assert ("Deployment", "llava-system", "llava-finetune-operator-tuner") in rendered
    assert environment_of(rendered)["LLAVA_OPERATOR_NAME"] == "llava-finetune-operator-tuner"


def test_images(helm: Path) -> None:
    rendered = objects(
        helm,
        "--set-string",
        "image.repository=r.example/op,image.tag=1,trainerImage.repository=r.example/tr,trainerImage.tag=2",
    )
    [deployment] = [one for key, one in rendered.items() if key[0] == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "r.example/op:1"
    assert environment_of(rendered)["LLAVA_OPERATOR_TRAINER_IMAGE"] == "r.example/tr:2"


def test_operator_pod_is_restricted(helm: Path) -> None:
    deployment = objects(helm)["Deployment", "llava-system", "llava-finetune-operator"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("replica=2", "replica"),
        ("replicas=0", "replicas"),
        ("logLevel=loud", "logLevel"),
        ("download.proxy=x", "proxy"),
        ("download.secret.name=x", "secret"),
        ("download.xet=perhaps", "xet"),
        ("download.hubEndpoint=hub.example", "hubEndpoint"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("watchNamespaces=team-a", "watchNamespaces"),
        ("readNodes=sometimes", "readNodes"),
        ("policy.images=x", "images"),
        ("policy.secretNames=llava", "secretNames"),
        ("policy.tolerations=some", "tolerations"),
        ("policy.admission=some", "admission"),
        ("networkPolicy.enabled=some", "enabled"),
        ("networkPolicy.metricsFrom={}", "metricsFrom"),
        ("isolateTraining=perhaps", "isolateTraining"),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Path, setting: str, named: str) -> None:
    assert named in refusal(helm, "--set", setting)


def test_kustomize_base_is_rendered_from_the_chart(helm: Path) -> None:
    for path, content in render_base(helm).items():
        assert path.read_text() == content, f"{path} is stale: run `make generate`"


def test_kustomize_base_builds(kustomize: Path) -> None:
    built = subprocess.run(
        [kustomize, "build", str(ROOT / "manifests" / "base")], check=True, capture_output=True, text=True
    )
    kinds = [document["kind"] for document in yaml.safe_load_all(built.stdout)]
    assert "Namespace" in kinds
    assert kinds.count("CustomResourceDefinition") == 1


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_samples_are_valid_and_explained(path: Path) -> None:
    text = path.read_text()
    sample = yaml.safe_load(text)
    spec = Spec.model_validate(sample["spec"])
    unit = spec.training.batch.per_device * spec.workers.replicas * max(spec.workers.gpus, 1)
    assert spec.training.batch.global_ % unit == 0
    assert text.count("#") >= 8, "a newcomer needs comments"


def test_values_schema_knows_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) <= set(schema["properties"])
