"""``python -m tests.demo up|down``: what `make demo` and `make demo-down` call."""

import argparse
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from tests.demo.courier import Courier
from tests.demo.inputs import put_inputs
from tests.demo.live import follow
from tests.demo.outcome import fetch_results, tell, write_summary
from tests.demo.plan import ROOT, DemoPlan, OwnData, build_manifest
from tests.demo.target import (
    OPERATOR_NAMESPACE,
    RELEASE,
    Target,
    TargetError,
    embedded,
    existing,
    helm_cluster_arguments,
    install_operator,
    reach,
)
from tests.demo.watch import list_ways_to_watch, start_prometheus
from tests.kubectl import DeadlineExceeded, KubectlError
from tests.localcluster.cluster import LocalCluster
from tests.localcluster.errors import ClusterError
from tests.localcluster.shell import run

CLUSTER_NAME = "demo"
NAMESPACE = "llava-demo"
RUN_NAME = "tiny"
# Status is fresher than on a production cluster, where a write every 15 s a run is plenty.
_PROGRESS_INTERVAL_S = 1
_RUN_TIMEOUT_S = 1800


class _Steps:
    """Says what is going on, and how long it took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._current: tuple[str, float] | None = None
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> None:
        self.end()
        self._console.print(f"▸ {name}", highlight=False)
        self._current = (name, time.monotonic())

    def end(self) -> None:
        if self._current:
            name, started = self._current
            self.seconds[name] = round(time.monotonic() - started, 1)
            self._current = None


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--data", default="", help="folder with your own dataset (make demo DATA=FOLDER)")
    parser.add_argument("--format", default="", help="its format: ubiai, llava or messages (FORMAT=)")
    parser.add_argument("--file", default="", help="its JSON file, relative to the folder (FILE=)")
    parser.add_argument("--images", default="", help="its folder of pictures, relative to the folder (IMAGES=)")
    parser.add_argument("--context", default="", help="kubectl context of your own cluster (CONTEXT=)")
    parser.add_argument("--operator-image", default="", help="with CONTEXT: the operator's image (OPERATOR_IMAGE=)")
    parser.add_argument("--trainer-image", default="", help="with CONTEXT: the trainer's image (TRAINER_IMAGE=)")
    parser.add_argument("--storage-class", default="", help="StorageClass with ReadWriteMany (STORAGE_CLASS=)")
    parser.add_argument("--output", type=Path, default=ROOT / "demo-output", help="folder for the report")
    return parser.parse_args(argv)


def _own_data(arguments: argparse.Namespace) -> OwnData | None:
    if not arguments.data:
        for name in ("format", "file", "images"):
            if getattr(arguments, name):
                raise TargetError(f"{name.upper()}={getattr(arguments, name)} needs DATA=FOLDER")
        return None
    folder = Path(arguments.data).expanduser().resolve()
    if arguments.format not in ("ubiai", "llava", "messages"):
        raise TargetError(f"DATA needs FORMAT=ubiai, llava or messages, not FORMAT={arguments.format!r}")
    if not arguments.file:
        raise TargetError("DATA needs FILE=NAME, the dataset's JSON file in the folder")
    if not folder.is_dir():
        raise TargetError(f"DATA={arguments.data} is no folder")
    if not (folder / arguments.file).is_file():
        raise TargetError(f"FILE={arguments.file} is not in {folder}")
    images = arguments.images or ("images" if (folder / "images").is_dir() else "")
    if images and not (folder / images).is_dir():
        raise TargetError(f"IMAGES={images} is no folder in {folder}")
    return OwnData(folder=folder, format=arguments.format, file=arguments.file, images=images)


def _plan(arguments: argparse.Namespace) -> DemoPlan:
    data = _own_data(arguments)
    return DemoPlan(
        cluster=CLUSTER_NAME,
        context=arguments.context or None,
        namespace=NAMESPACE,
        run=RUN_NAME if data is None else "own-data",
        output=arguments.output,
        data=data,
        images={"operator": arguments.operator_image, "trainer": arguments.trainer_image},
        storage_class=arguments.storage_class or None,
    )


def up(plan: DemoPlan, console: Console) -> int:
    """From nothing to a judged model; returns the exit code."""
    steps = _Steps(console)
    target = existing(plan) if plan.context else embedded(plan, steps)
    steps("operator, installed by Helm")
    install_operator(target, progress_interval_s=_PROGRESS_INTERVAL_S)
    steps("Prometheus")
    address = start_prometheus(plan)
    for line in list_ways_to_watch(address):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    kubectl = target.kubectl
    courier = Courier(kubectl=kubectl, image=target.operator_image)
    steps("inputs")
    _fresh_namespace(target, plan)
    console.print(f"  {put_inputs(plan, kubectl, courier)}", highlight=False)
    steps(f"LlavaFineTune {plan.run}")
    kubectl.apply(build_manifest(plan))
    run_object = follow(kubectl, plan.run, console, timeout_s=_RUN_TIMEOUT_S)
    steps("reports")
    fetch_results(plan, courier, run_object)
    steps.end()
    write_summary(plan.output / "summary.json", steps.seconds, run_object)
    return tell(
        plan, run_object, console, target.kubectl_line, target.shell_line, ways_to_watch=list_ways_to_watch(address)
    )


def _fresh_namespace(target: Target, plan: DemoPlan) -> None:
    """The demo's namespace, without the run of an earlier demo."""
    body = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": plan.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    target.kubectl.apply(body)
    target.kubectl.run("delete", "lft", plan.run, "--ignore-not-found", timeout_s=120)
    # The claim is named after the run: it has to be gone before the run is made again.
    target.kubectl.run("delete", "pvc", f"{plan.run}-run", "--ignore-not-found", "--wait=true", timeout_s=120)


def down(plan: DemoPlan, console: Console) -> int:
    """Remove what `up` started and made outside the cache, the fetched reports included."""
    shutil.rmtree(plan.output, ignore_errors=True)
    if plan.context:
        kubectl, helm = reach(plan)
        kubectl.run("delete", "namespace", plan.namespace, "--ignore-not-found", timeout_s=180)
        run(
            [helm, *helm_cluster_arguments(kubectl), "uninstall", RELEASE, "--namespace", OPERATOR_NAMESPACE,
             "--ignore-not-found"],
            what="uninstalling the operator",
            timeout_s=120,
        )  # fmt: skip
        console.print("The demo and its reports are gone; the CustomResourceDefinition is kept.")
        return 0
    LocalCluster(plan.cluster).down()
    console.print("The demo's cluster and reports are gone; built programs and images are kept in the cache.")
    return 0


def main(argv: list[str]) -> int:
    """Run one command; returns the exit code."""
    console = Console(highlight=False)
    try:
        arguments = _parse(argv)
        plan = _plan(arguments)
        return up(plan, console) if arguments.command == "up" else down(plan, console)
    except (TargetError, ClusterError, KubectlError, DeadlineExceeded) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted. What was started still runs: `make demo-down` removes it, `make demo` goes on.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
