"""An API server that keeps answering with errors: the run says so, and goes on when it is well again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from llava_api.failures import Reason
from llava_operator.kube.kinds import JOBS
from tests.cluster.kubelets import do_nothing
from tests.cluster.operators import OperatorProcess
from tests.cluster.worlds import world_of
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster


class Proxy:
    """Stands between an operator and the API server, and answers what it is told to with an error."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self.config = config
        self.upstream: str = config["clusters"][0]["cluster"]["server"]
        self.refuse: Callable[[web.BaseRequest], int | None] = lambda _: None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if code := self.refuse(request):
            body = {"kind": "Status", "status": "Failure", "message": "etcdserver: no space", "code": code}
            return web.json_response(body, status=code)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        url = f"{self.upstream}{request.path_qs}"
        async with self.session.request(
            request.method, url, headers=headers, data=await request.read() or None
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    @contextlib.asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[Path]:
        """A kubeconfig that leads through here."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as self.session:
            runner = web.ServerRunner(web.Server(self.handle), shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            cluster = self.config["clusters"][0]["cluster"]
            cluster.pop("certificate-authority-data", None)
            cluster.pop("certificate-authority", None)
            cluster["server"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
            path = folder / "proxied.kubeconfig"
            path.write_text(yaml.safe_dump(self.config))
            try:
                yield path
            finally:
                await runner.cleanup()


@pytest.mark.parametrize("code", [429, 503])
async def test_errors_that_the_api_server_keeps_answering(
    api_server: Kubectl, installation: Path, tmp_path: Path, code: int
) -> None:
    """503 stands in the way of the Job; 429 ends every pass, and is told all the same."""
    proxy = Proxy(installation)
    name = f"api-errors-{code}"
    path = JOBS.path(name)
    proxy.refuse = lambda request: code if (request.method, request.path) == ("POST", path) else None
    log = tmp_path / "operator.log"
    async with proxy.serve(tmp_path) as kubeconfig, world_of(api_server, name, do_nothing) as world:
        operator = OperatorProcess(pod_name=f"proxied-{code}", kubeconfig=kubeconfig, log=log)
        await asyncio.to_thread(operator.start)
        try:
            await world.create_run()
            await world.waits(Reason.API_ERROR, "etcdserver: no space")
            proxy.refuse = lambda _: None
            await world.goes_on()
        finally:
            await asyncio.to_thread(operator.stop)
