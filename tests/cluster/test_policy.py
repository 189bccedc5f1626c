"""The installer's rules on a real API server: by the admission policy at apply, by the operator where there is none.

One table of cases (``tests/policies.py``) drives both, and the messages have to be the same to the letter.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.spec import Spec
from llava_operator.deciding.violations import find_violations
from llava_operator.stages import STAGES
from tests.cluster.operators import OperatorProcess, running
from tests.kubectl import Kubectl, wait_for
from tests.localcluster.tools import HELM, ensure_tools
from tests.policies import CASES, INSTALLATIONS, Case, make_run, make_spec, policy_of
from tests.rendering import render

pytestmark = pytest.mark.cluster

KINDS = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
DENIED = re.compile(
    # The first where kubectl was given one object, the second where it was given several.
    r'^(?:The llavafinetunes|Error from server [(]Invalid[)]: .* llavafinetunes[.]finetune[.]llava[.]dev) "([^"]+)" '
    r"is (?:invalid|forbidden): .*ValidatingAdmissionPolicy .* denied request: (.*)$"
)
HEEDED_S = 10
SYSTEM, FREE = "policy-system", "policy-free"
"""Namespaces of an operator, and of runs that no admission policy looks at."""
NAMES = {case: f"case-{number}" for number, case in enumerate(map(str, CASES))}
JUDGED = [
    case for case in CASES if case.installation == "strict" and not re.search("-(no|ok)-([2-9]|.[0-9])$", case.name)
]
"""What an operator is asked as well: of the many odd images and addresses, which are one function's, two of each."""


def namespace_of(installation: str) -> str:
    return f"policy-{installation}"


def make_namespace(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def render_objects(folder: Path, values: dict[str, Any], *arguments: str) -> list[dict[str, Any]]:
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    text = render(ensure_tools((HELM,)).path("helm"), "--values", str(file), *arguments)
    return [made for made in yaml.safe_load_all(text) if made]


def expect(case: Case) -> str | None:
    """What the operator says first."""
    spec = Spec.model_validate(make_spec(case.spec))
    found = find_violations(spec, policy_of(INSTALLATIONS[case.installation]), STAGES[StageName.PREPARE])
    return found[0].message if found else None


def create(kubectl: Kubectl, cases: list[Case], *options: str) -> dict[str, str]:
    """Create runs; what kubectl says of those that are refused, by their names."""
    body = "\n---\n".join(json.dumps(make_run(case, NAMES[str(case)])) for case in cases)
    command = kubectl.command("create", *options, "-f", "-")
    done = subprocess.run(command, input=body.encode(), capture_output=True, timeout=120, check=False)
    refused = [DENIED.match(line) for line in done.stderr.decode().splitlines()]
    assert all(refused), done.stderr.decode()
    created = re.findall(r"/(\S+) created", done.stdout.decode())
    found = {match[1]: match[2] for match in refused if match}
    assert sorted([*created, *found]) == sorted(NAMES[str(case)] for case in cases)
    return found


def refusals(api_server: Kubectl, installation: str) -> dict[str, str]:
    """What the API server refuses of an installation's cases; it heeds a policy some time after it has taken it."""
    kubectl = replace(api_server, namespace=namespace_of(installation))
    cases = [case for case in CASES if case.installation == installation]
    expected = {NAMES[str(case)] for case in cases if case.refusal is not None}
    deadline = time.monotonic() + HEEDED_S
    while (found := create(kubectl, cases, "--dry-run=server")).keys() != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def admitted(api_server: Kubectl, crd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What admission policies refuse of each installation's cases: one policy and one namespace an installation."""
    objects = []
    for installation, values in INSTALLATIONS.items():
        policy = {**values.get("policy", {}), "admission": True}
        rendered = render_objects(
            tmp_path_factory.mktemp(installation),
            {**values, "policy": policy, "nameOverride": installation, "watchNamespaces": [namespace_of(installation)]},
        )
        objects += [made for made in rendered if made["kind"] in KINDS]
    assert len(objects) == 2 * len(INSTALLATIONS)
    api_server.apply(*map(make_namespace, map(namespace_of, INSTALLATIONS)), *objects)
    yield {name: said for installation in INSTALLATIONS for name, said in refusals(api_server, installation).items()}
    for made in objects:
        api_server.run("delete", made["kind"], made["metadata"]["name"])
    api_server.run("delete", "namespace", "--wait=false", *map(namespace_of, INSTALLATIONS))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_admission_says_what_the_operator_says(admitted: dict[str, str], case: Case) -> None:
    said = admitted.get(NAMES[str(case)])
    assert (said is None) is (case.refusal is None)
    assert said == expect(case)


def test_admission_policies_are_typed_as_the_resource_is(api_server: Kubectl, admitted: dict[str, str]) -> None:
    """The API server checks expressions against the CRD's schema, too, and tells in the status what does not fit."""

    def checked() -> list[dict[str, Any]] | None:
        found = api_server.list("validatingadmissionpolicies")
        return found if all(one.get("status", {}).get("observedGeneration") for one in found) else None

    for policy in wait_for("the types to be checked", checked, timeout_s=30):
        assert "expressionWarnings" not in policy["status"].get("typeChecking", {}), policy["status"]


def test_runs_that_were_there_before_can_still_be_labelled(api_server: Kubectl, admitted: dict[str, str]) -> None:
    """The binding is taken away and put back, as if the policy had come later than the run."""
    kubectl = replace(api_server, namespace=namespace_of("closed"))
    name = "llava-finetune-operator-closed"
    case = next(one for one in CASES if str(one) == "closed-all-image")
    binding = kubectl.get("validatingadmissionpolicybinding", name)
    kubectl.run("delete", "validatingadmissionpolicybinding", name)
    run = make_run(case, "earlier")
    wait_for("the run to be accepted", lambda: kubectl.apply(run), timeout_s=30, poll_s=0.2)
    kubectl.apply({"apiVersion": binding["apiVersion"], "kind": binding["kind"], "metadata": {"name": name},
                   "spec": binding["spec"]})  # fmt: skip
    wait_for("the policy to act", lambda: create(kubectl, [case], "--dry-run=server"), timeout_s=30, poll_s=0.2)
    assert "labeled" in kubectl.run("label", "lft", "earlier", "team=a")
    assert "deleted" in kubectl.run("delete", "lft", "earlier")


def test_runs_of_other_namespaces_are_not_looked_at(api_server: Kubectl, admitted: dict[str, str]) -> None:
    refused = [case for case in CASES if case.installation == "closed" and case.refusal is not None]
    assert create(api_server, refused, "--dry-run=server") == {}


@pytest.fixture(scope="module")
def judged(api_server: Kubectl, crd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """Runs of the strict installation in a namespace without admission policy; its operator looks at them.

    The operator gets its settings and its rights from the chart, as a Deployment's pod does.
    """
    folder = tmp_path_factory.mktemp("operator")
    network = {"enabled": True, "metricsFrom": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}
    values = {**INSTALLATIONS["strict"], "nameOverride": "judge", "watchNamespaces": [FREE], "networkPolicy": network}
    rendered = render_objects(folder, values, "--namespace", SYSTEM)
    [deployment] = [made for made in rendered if made["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    objects = [made for made in rendered if made["kind"] not in ("CustomResourceDefinition", "Deployment")]
    system, free = replace(api_server, namespace=SYSTEM), replace(api_server, namespace=FREE)
    api_server.apply(make_namespace(SYSTEM), make_namespace(FREE))
    for kubectl in (system, free):
        kubectl.apply(*(made for made in objects if made["metadata"].get("namespace", SYSTEM) == kubectl.namespace))
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    assert system.kubeconfig is not None
    config = yaml.safe_load(system.kubeconfig.read_text())
    token = system.run("create", "token", account, "--duration=1h").strip()
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    kubeconfig = folder / "operator.kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    settings = {entry["name"].removeprefix("LLAVA_OPERATOR_"): entry["value"] for entry in container["env"]
                if "value" in entry}  # fmt: skip
    operator = OperatorProcess(
        pod_name="op", kubeconfig=kubeconfig, log=folder / "op.log", extra={**settings, "NAMESPACE": SYSTEM}
    )
    assert create(free, JUDGED) == {}
    with running(operator):
        yield free
    log = operator.log.read_text()
    assert "Traceback" not in log, log
    cluster_wide = [made for made in objects if made["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    for made in cluster_wide:
        api_server.run("delete", made["kind"], made["metadata"]["name"])
    api_server.run("delete", "namespace", "--wait=false", SYSTEM, FREE)


def test_operator_refuses_the_same_without_an_admission_policy(judged: Kubectl) -> None:
    cases = {NAMES[str(case)]: case for case in JUDGED}
    assert len(cases) > 30

    def settled() -> dict[str, Any] | None:
        runs = {run["metadata"]["name"]: run.get("status", {}) for run in judged.list("lft")}
        with_job = {job["metadata"]["labels"]["finetune.llava.dev/run"] for job in judged.list("jobs")}
        return runs if all(runs[name].get("failure") or name in with_job for name in cases) else None

    statuses = wait_for("every run to be refused or begun", settled, timeout_s=60)
    for name, case in cases.items():
        failure = statuses[name].get("failure")
        assert (failure is None) is (case.refusal is None), name
        if failure is not None:
            assert failure["reason"] == Reason.NOT_ALLOWED
            assert failure["message"].split("; ")[0] == expect(case)
    refused = {name for name, case in cases.items() if case.refusal is not None}
    children = judged.list("jobs,pods,configmaps,services,persistentvolumeclaims")
    made = {
        (child["metadata"].get("labels", {}).get("finetune.llava.dev/run"), child["metadata"]["name"])
        for child in children
    }
    # That it has failed is told to those receivers who are allowed.
    made = {(run, name) for run, name in made if "-notify-" not in name}
    assert not {name for run, name in made if run in refused}, "something was made for a run that is not allowed"
