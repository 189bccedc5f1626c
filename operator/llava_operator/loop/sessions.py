"""kopf's own requests, made to be seen: it logs in with sessions that tell of each request, and of watches that broke.

What stays unseen is why: of a watch that ends with an error, kopf says neither whether the connection was lost, nothing
came for too long, or what it had seen last is no longer kept (410).

kopf logs in again whenever a request is answered 401, and at once. It takes no credentials twice that were refused, but
every session is new to it: an API server that knows the operator no more would be asked without pause. So logins wait.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace, TracebackType
from typing import Any

import aiohttp
import kopf
from yarl import URL

from llava_operator.kube.requests import NO_ANSWER, Answered
from llava_operator.loop.backoffs import LoginBackoffs


class WatchSessions:
    """Logs kopf in. It calls what is no coroutine in a thread, where no session can be opened."""

    def __init__(
        self,
        *,
        note_request: Callable[[Answered], None],
        note_broken: Callable[[Answered], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Make one that calls ``note_request`` after each request, and ``note_broken`` after a watch with an error."""
        self._note_request = note_request
        self._note_broken = note_broken
        self._sleep = sleep
        self._of_service_account, self._of_kubeconfig = LoginBackoffs(clock=clock), LoginBackoffs(clock=clock)

    async def login_with_service_account(self, **kwargs: Any) -> kopf.AiohttpSession | None:
        """What a pod's service account gives; None outside of pods."""
        return await self._login(lambda: kopf.login_with_service_account(**kwargs), self._of_service_account)

    async def login_with_kubeconfig(self, **kwargs: Any) -> kopf.AiohttpSession | None:
        """What KUBECONFIG gives; None without one."""
        return await self._login(lambda: kopf.login_with_kubeconfig(**kwargs), self._of_kubeconfig)

    async def _login(
        self, read: Callable[[], kopf.ConnectionInfo | None], backoffs: LoginBackoffs
    ) -> kopf.AiohttpSession | None:
        # Credentials are read after the wait: the kubelet may have renewed the token within it.
        await self._sleep(backoffs.next_s())
        info = read()
        if info is None:
            return None
        backoffs.note()
        return self._open(info)

    def _open(self, info: kopf.ConnectionInfo) -> kopf.AiohttpSession:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
            headers=info.as_http_headers(),
            proxy=info.proxy_url,
            trust_env=info.trust_env,
            trace_configs=[self._build_trace()],
            response_class=self._build_response_class(),
        )
        return kopf.AiohttpSession(
            server=info.server,
            default_namespace=info.default_namespace,
            priority=info.priority,
            expiration=info.expiration,
            aiohttp_session=session,
        )

    def _build_trace(self) -> aiohttp.TraceConfig:
        trace = aiohttp.TraceConfig()

        async def begin(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
            context.began = time.monotonic()

        async def end(_: Any, context: SimpleNamespace, params: aiohttp.TraceRequestEndParams) -> None:
            self._note(params.method, params.response.url, params.response.status, context.began)

        async def fail(_: Any, context: SimpleNamespace, params: aiohttp.TraceRequestExceptionParams) -> None:
            self._note(params.method, params.url, NO_ANSWER, context.began)

        trace.on_request_start.append(begin)
        trace.on_request_end.append(end)
        trace.on_request_exception.append(fail)
        return trace

    def _note(self, method: str, url: URL, code: int, began: float) -> None:
        answered = Answered(
            method=method, path=url.raw_path, code=code, seconds=time.monotonic() - began, is_watch=_is_watch(url)
        )
        self._note_request(answered)
        if answered.is_watch and not 200 <= code <= 299:
            self._note_broken(answered)

    def _build_response_class(self) -> type[aiohttp.ClientResponse]:
        note_broken = self._note_broken

        class WatchedResponse(aiohttp.ClientResponse):
            """Tells how it is left: kopf reads a watch within ``async with``, and leaves that by what has ended it."""

            async def __aexit__(
                self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
            ) -> None:
                if exc_type is not None and _is_watch(self.url):
                    note_broken(
                        Answered(method=self.method, path=self.url.raw_path, code=self.status, seconds=0, is_watch=True)
                    )
                await super().__aexit__(exc_type, exc_val, exc_tb)

        return WatchedResponse


def _is_watch(url: URL) -> bool:
    return url.query.get("watch") == "true"
