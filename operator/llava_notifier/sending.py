"""Tries to deliver one request until it is taken, refused, or has been tried for long enough.

No answer's body is read, no redirect followed: of what a receiver says its status counts, how long it wants to be left
alone, and of Slack one of its own words. What others say of a connection may hold the address, so it is told in our
words.
"""

import asyncio
import email.utils
import logging
import random
import time
from dataclasses import dataclass

import aiohttp

from llava_api.delivery import EXIT_REFUSED, EXIT_UNREACHED, Patience
from llava_notifier.request import Request
from llava_notifier.signature import sign

logger = logging.getLogger(__name__)

LAST_ASKED_S = 300.0
"""Longest wait that a receiver may ask for by Retry-After."""
_LATER = frozenset({408, 425, 429})
"""Besides 5xx: refusals that may pass."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What has become of a request."""

    exit_code: int
    message: str


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What came of one try."""

    message: str
    is_taken: bool = False
    is_final: bool = False
    asked_s: float = 0.0


async def deliver(request: Request, patience: Patience) -> Outcome:
    """Try until there is an outcome."""
    clock = asyncio.get_running_loop().time
    deadline, delay_s, num_tries = clock() + patience.try_for_seconds, patience.first_delay_seconds, 0
    while True:
        answer = await _try(request, patience)
        num_tries += 1
        logger.info("try %d of event %s: %s", num_tries, request.event_id, answer.message)
        if answer.is_taken:
            return Outcome(exit_code=0, message=answer.message)
        if answer.is_final:
            return Outcome(exit_code=EXIT_REFUSED, message=answer.message)
        # Half of it by chance: receivers that come back are not met by everybody at once.
        wait_s = max(delay_s * random.uniform(0.5, 1.0), min(answer.asked_s, LAST_ASKED_S))
        if clock() + wait_s > deadline:
            return Outcome(exit_code=EXIT_UNREACHED, message=f"{answer.message} (the last of {num_tries} tries)")
        await asyncio.sleep(wait_s)
        delay_s = min(delay_s * 2, patience.last_delay_seconds)


async def _try(request: Request, patience: Patience) -> _Answer:
    headers = dict(request.headers)
    if request.signing_key is not None:
        headers |= sign(request.signing_key, request.event_id, int(time.time()), request.body)
    proxy = request.proxy
    for_proxy = {"Proxy-Authorization": proxy.authorization} if proxy is not None and proxy.authorization else {}
    if request.host.startswith("http://"):
        # Such a request goes to the proxy itself.
        headers |= for_proxy
    try:
        async with (
            aiohttp.ClientSession(
                # Each try resolves the name and connects anew.
                connector=aiohttp.TCPConnector(ssl=request.context, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=patience.answer_seconds, sock_connect=patience.connect_seconds),
                auto_decompress=False,
                trust_env=False,
            ) as session,
            session.post(
                request.url,
                data=request.body,
                headers=headers,
                allow_redirects=False,
                proxy=proxy.url if proxy is not None else None,
                proxy_headers=for_proxy,
            ) as response,
        ):
            answer = _judge(request.host, response)
            # Its body may have no end.
            response.close()
            return answer
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return _Answer(message=f"{request.host}: {_describe(error, patience)}")


def _judge(host: str, response: aiohttp.ClientResponse) -> _Answer:
    status = response.status
    said = f"{host} answers {status}"
    if 200 <= status < 300:
        return _Answer(message=said, is_taken=True)
    if status in _LATER or status >= 500:
        return _Answer(message=said, asked_s=_read_retry_after(response.headers.get("Retry-After", "")))
    if 300 <= status < 400:
        return _Answer(message=f"{said}: redirects are not followed, name the address itself", is_final=True)
    return _Answer(message=said, is_final=True)


def _read_retry_after(text: str) -> float:
    """Seconds that a receiver wants to be left alone, or until an instant; 0 where it does not say."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _describe(error: BaseException, patience: Patience) -> str:
    """What went wrong, in words that hold nothing of the address."""
    match error:
        case TimeoutError():
            return f"no answer within {patience.answer_seconds:g} s"
        case aiohttp.ClientConnectorCertificateError():
            why = getattr(error.certificate_error, "verify_message", "") or "it is another host's"
            return f"its certificate is not trusted: {why}"
        case aiohttp.ClientHttpProxyError():
            return f"the proxy answers {error.status}"
        case aiohttp.ClientConnectorError():
            return f"cannot be reached: {error.os_error.strerror or type(error.os_error).__name__}"
        case aiohttp.ServerDisconnectedError():
            return "ended the connection without an answer"
        case aiohttp.ClientResponseError():
            return "answers with what is no HTTP"
    return f"the connection failed ({type(error).__name__})"
