"""GET /metrics for those who may read it, and nothing for anybody else."""

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from llava_operator.kube.errors import KubeError
from llava_operator.kube.reviews import BusyError
from llava_operator.scraping.access import PATH, Access, Readers
from llava_operator.serving.bearer import read_bearer
from llava_operator.serving.lines import FewLines

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
logger = logging.getLogger(__name__)


def build_secure_app(readers: Readers, handler: Handler, *, clock: Callable[[], float]) -> web.Application:
    """The application that asks before ``handler`` is called. Refusals say nothing but their code."""
    lines = FewLines(logger, clock=clock)

    def refuse(request: web.Request, code: int, why: str) -> web.Response:
        lines.log(f"metrics refused to {request.remote} with {code}: {why}")
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "10"}}.get(code)
        return web.Response(status=code, headers=headers)

    async def answer(request: web.Request) -> web.StreamResponse:
        token = read_bearer(request)
        if token is None:
            return refuse(request, 401, "no token")
        try:
            access = await readers.judge(token, request.remote or "")
        except BusyError:
            return refuse(request, 429, "too many tokens to be reviewed")
        except KubeError as error:
            return refuse(request, 503, f"the API server cannot be asked: {error}")
        if access is Access.UNKNOWN:
            return refuse(request, 401, "the API server does not know the token")
        if access is Access.FORBIDDEN:
            return refuse(request, 403, f"its ServiceAccount or user may not get {PATH}")
        return await handler(request)

    app = web.Application()
    app.add_routes([web.get(PATH, answer)])
    return app
