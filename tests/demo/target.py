"""The cluster that the demo runs on: the embedded one, or a person's own."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.demo.plan import DemoPlan
from tests.kubectl import Kubectl, KubectlError
from tests.localcluster.cluster import LocalCluster
from tests.prepare import prepare_everything
from tests.rendering import CHART

OPERATOR_NAMESPACE = "llava-system"
RELEASE = "llava-finetune-operator"
_INSTALL_TIMEOUT_S = 240


@dataclass(frozen=True, kw_only=True)
class Target:
    """A cluster that can be reached, and the images that it has."""

    kubectl: Kubectl
    helm: Path
    operator_image: str
    trainer_image: str
    kubectl_line: str
    """How a person calls kubectl for it."""
    shell_line: str | None = None
    """What a person types before that, so that the shell finds kubectl and the cluster."""


class TargetError(Exception):
    """The cluster cannot be used; the message says what is missing."""


def embedded(plan: DemoPlan, step: Callable[[str], None]) -> Target:
    """Start the embedded cluster with both images in it, building what is missing.

    Raises:
        ClusterError: a part of it failed.
    """
    step("Debian packages, Kubernetes programs and images, built once")
    tools, built = prepare_everything()
    step("cluster with one node")
    cluster = LocalCluster(plan.cluster)
    cluster.up()
    step("images into the node")
    for image in built.values():
        cluster.load_image(image)
    kubectl = Kubectl(binary=tools.path("kubectl"), kubeconfig=cluster.kubeconfig, namespace=plan.namespace)
    return Target(
        kubectl=kubectl,
        helm=tools.path("helm"),
        operator_image=built["operator"],
        trainer_image=built["trainer"],
        kubectl_line=f"kubectl -n {plan.namespace}",
        shell_line=f'eval "$(python3 -m tests.localcluster env --name {plan.cluster})"',
    )


def reach(plan: DemoPlan) -> tuple[Kubectl, Path]:
    """kubectl and helm for a person's own cluster, by its kubectl context.

    Raises:
        TargetError: a program is missing, or the cluster does not answer.
    """
    programs = {}
    for name in ("kubectl", "helm"):
        path = shutil.which(name)
        if path is None:
            raise TargetError(f"CONTEXT={plan.context} needs {name} on the PATH")
        programs[name] = Path(path)
    kubectl = Kubectl(binary=programs["kubectl"], context=plan.context, namespace=plan.namespace)
    try:
        kubectl.run("version", timeout_s=20)
    except KubectlError as error:
        raise TargetError(f"the cluster of context {plan.context} does not answer: {error}") from error
    return kubectl, programs["helm"]


def existing(plan: DemoPlan) -> Target:
    """A person's own cluster; the images have to be within its reach.

    Raises:
        TargetError: an image reference or a program is missing, or the cluster does not answer.
    """
    for name in ("operator", "trainer"):
        if not plan.images.get(name):
            raise TargetError(
                f"CONTEXT={plan.context} needs {name.upper()}_IMAGE=REFERENCE, an image that the cluster can pull; "
                "README.md says how to bring it there"
            )
    kubectl, helm = reach(plan)
    return Target(
        kubectl=kubectl,
        helm=helm,
        operator_image=plan.images["operator"],
        trainer_image=plan.images["trainer"],
        kubectl_line=f"kubectl --context {plan.context} -n {plan.namespace}",
    )


def helm_cluster_arguments(kubectl: Kubectl) -> list[str]:
    """What tells helm which cluster is meant."""
    return ["--kube-context" if argument == "--context" else argument for argument in kubectl.cluster_arguments]


def install_operator(target: Target, *, progress_interval_s: float, values: Sequence[str] = ()) -> None:
    """Install or upgrade the operator by its chart, and wait until it is ready.

    Args:
        target: where.
        progress_interval_s: between two writes of progress.
        values: further ones of the chart, as helm's --set-json has them.

    Raises:
        TargetError: helm failed; the message holds what it printed.
    """
    settings: list[str] = []
    for key, image in (("image", target.operator_image), ("trainerImage", target.trainer_image)):
        repository, _, tag = image.rpartition(":")
        settings += ["--set-string", f"{key}.repository={repository},{key}.tag={tag}"]
    for value in values:
        settings += ["--set-json", value]
    arguments = helm_cluster_arguments(target.kubectl)
    done = subprocess.run(
        [str(target.helm), *arguments, "upgrade", "--install", RELEASE, str(CHART),
         "--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--wait", f"--timeout={_INSTALL_TIMEOUT_S}s",
         "--set", f"progressIntervalSeconds={progress_interval_s}", *settings],
        capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S + 30, check=False,
    )  # fmt: skip
    if done.returncode:
        raise TargetError(f"helm could not install the operator: {done.stderr.strip()}")
