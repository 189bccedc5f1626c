"""Makes what the tests and the demo need and what takes long: Debian packages, programs, images, a tiny base model.

``python -m tests.prepare``; where there is no root, or vLLM cannot be installed, it says so and leaves the rest to
pytest, which lists what cannot run.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from tests import browser
from tests.localcluster import debian, host, images
from tests.localcluster.errors import ClusterError
from tests.localcluster.shell import log
from tests.localcluster.tools import ALL_TOOL_SETS, KSTATUS, KUBE_STATE_METRICS, VERSITYGW, Tools, ToolSet, ensure_tools
from tests.trainer.servers import vllm

_FOR_TESTS = (KSTATUS, KUBE_STATE_METRICS, VERSITYGW)


def prepare_everything(further: tuple[ToolSet, ...] = ()) -> tuple[Tools, dict[str, str]]:
    """Install, build and return the programs and the image references by name (operator, trainer).

    Programs and images are built at the same time: the one is bound by the processors, the other by the disk.

    Args:
        further: programs to be built besides those of a cluster.

    Raises:
        ClusterError: no root, or a build failed.
    """
    host.require_root()
    host.install_packages((*host.ALL_PACKAGES, *browser.PACKAGES))
    debian.ensure_unpacked(debian.PROMETHEUS)
    debian.ensure_unpacked(debian.DOCKER_REGISTRY)
    names = ["operator", "trainer"]
    with ThreadPoolExecutor(max_workers=2) as pool:
        building_tools = pool.submit(ensure_tools, (*ALL_TOOL_SETS, *further))
        building_images = pool.submit(images.build_images, names)
        tools, references = building_tools.result(), building_images.result()
    return tools, dict(zip(names, references, strict=True))


def main() -> int:
    """Prepare what can be prepared; returns the exit code."""
    # A download of 3 GB, which everything else need not wait for.
    with ThreadPoolExecutor(max_workers=1) as pool:
        installing = pool.submit(_install_vllm)
        code = _prepare()
        installing.result()
    return code


def _install_vllm() -> None:
    try:
        vllm.install_vllm()
    except ClusterError as error:
        log(str(error))


def _prepare() -> int:
    try:
        host.require_root()
    except ClusterError as error:
        log(f"nothing prepared: {error}")
        return 0
    # Several processes test: none of them should find another one making it.
    from tests.demo.inputs import cached_base

    try:
        prepare_everything(_FOR_TESTS)
        cached_base()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command line prints
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
