"""The command line: `python3 -m tests.localcluster COMMAND` from the repository's root."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.localcluster import host, images
from tests.localcluster.cluster import LocalCluster
from tests.localcluster.errors import ClusterError
from tests.localcluster.instance import require_no_instance
from tests.localcluster.paths import DEFAULT_STATE_ROOT, cache_root
from tests.localcluster.tools import ensure_tools


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.localcluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--name", default="dev", help="instance (default: %(default)s)")
    shared.add_argument(
        "--state", type=Path, default=DEFAULT_STATE_ROOT, help="folder of all instances (default: %(default)s)"
    )
    install = argparse.ArgumentParser(add_help=False)
    install.add_argument("--install", action="store_true", help="install missing Debian packages with apt-get")

    up = commands.add_parser("up", parents=[shared, install], help="start an instance and wait until it is ready")
    up.add_argument("--control-plane-only", action="store_true", help="a real API server, no nodes")
    up.add_argument("--nodes", type=int, default=1, help="real nodes to start with (default: %(default)s)")
    commands.add_parser("down", parents=[shared], help="remove an instance and all that it started")
    status = commands.add_parser("status", parents=[shared], help="what is there and what runs")
    status.add_argument("--json", action="store_true", help="for programs")
    load = commands.add_parser("load-image", parents=[shared], help="put an image onto the nodes")
    load.add_argument("image", help="a name in the local image storage, or an OCI or docker archive")
    load.add_argument("--node", default="all", help="all (the default), or node-0, node-1, …")
    commands.add_parser("add-node", parents=[shared], help="add one more real node")
    commands.add_parser("kubeconfig", parents=[shared], help="print the path of the kubeconfig")
    commands.add_parser("env", parents=[shared], help="print shell lines that set PATH and KUBECONFIG")
    commands.add_parser(
        "purge", parents=[shared], help="delete the cache of tools and images, which all instances share"
    )
    commands.add_parser("tools", parents=[install], help="build everything that is needed, start nothing")
    build = commands.add_parser("build-images", parents=[install], help="build the base and the project's images")
    build.add_argument("--only", choices=images.IMAGE_NAMES, action="append", help="just this one (repeatable)")
    return parser


def _print_status(cluster: LocalCluster, as_json: bool) -> None:
    status = cluster.status()
    if as_json:
        print(json.dumps(status.as_dict(), indent=2))
    elif not status.exists:
        print(f"instance {status.name!r}: none")
    else:
        print(f"instance {status.name!r}: {'ready' if status.ready else 'NOT READY'}")
        print(f"  API server  {status.api_url}\n  kubeconfig  {status.kubeconfig}")
        print(f"  nodes       {', '.join(status.nodes) or 'none'}")
        for name, is_alive in status.processes.items():
            print(f"  {name:<26}{'running' if is_alive else 'ENDED'}")


def _run_cluster_command(arguments: argparse.Namespace) -> None:
    cluster = LocalCluster(arguments.name, state_root=arguments.state)
    match arguments.command:
        case "up":
            cluster.up(control_plane_only=arguments.control_plane_only, num_nodes=arguments.nodes)
            print(cluster.kubeconfig)
        case "down":
            cluster.down()
        case "status":
            _print_status(cluster, arguments.json)
        case "load-image":
            nodes = None if arguments.node == "all" else [arguments.node]
            cluster.load_image(arguments.image, nodes=nodes)
        case "add-node":
            print(cluster.add_node())
        case "kubeconfig":
            print(cluster.kubeconfig)
        case "env":
            folders = os.pathsep.join(map(str, cluster.tools().folders))
            print(f'export PATH="{folders}:$PATH"\nexport KUBECONFIG="{cluster.kubeconfig}"')


def run_command(arguments: argparse.Namespace) -> None:
    """Carry out one parsed command; raises ClusterError when it cannot."""
    if getattr(arguments, "install", False):
        host.install_packages(host.ALL_PACKAGES)
    match arguments.command:
        case "purge":
            require_no_instance(arguments.state)
            images.purge(cache_root())
        case "tools":
            for folder in ensure_tools().folders:
                print(folder)
        case "build-images":
            for reference in images.build_images(arguments.only or list(images.IMAGE_NAMES)):
                print(reference)
        case _:
            _run_cluster_command(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        run_command(arguments)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; `down` removes what was started", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
