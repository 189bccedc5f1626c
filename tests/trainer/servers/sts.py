"""A token service as AssumeRoleWithWebIdentity asks for it, whose keys soon expire, and the guard of what they open."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs

from tests.trainer.servers.authority import Authority
from tests.trainer.servers.running import run_server

_ANSWER = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId>
<SecretAccessKey>secret-of-{key}</SecretAccessKey><SessionToken>session-of-{key}</SessionToken>
<Expiration>{expiration}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""
_REFUSAL = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>{code}</Code><Message>{code} it is</Message></Error></ErrorResponse>"""
_CREDENTIAL = re.compile(r"(?:X-Amz-Credential=|Credential=)([\w-]+)(?:/|%2F)")


@dataclass
class TokenService:
    """Gives each request new keys that last for ``lifetime_s``."""

    lifetime_s: float = 3600.0
    requests: list[dict[str, str]] = field(default_factory=list)
    refusals: list[tuple[int, str]] = field(default_factory=list)
    """Status and code of the next answers."""
    expiries: dict[str, float] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    """Keys that have opened something, in this order."""
    forbidden: list[tuple[int, str, str]] = field(default_factory=list)
    """Status and code of the guard's next answers to requests whose address holds a text."""
    delay_s: float = 0.0
    """How long the guard holds back what it lets through."""

    @contextmanager
    def run(self, authority: Authority) -> Iterator[str]:
        """The endpoint."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                status, answer = service.answer({key: one for key, [one] in parse_qs(body).items()})
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        with run_server(Handler, authority) as endpoint:
            yield endpoint

    def answer(self, request: dict[str, str]) -> tuple[int, bytes]:
        self.requests.append(request)
        if self.refusals:
            status, code = self.refusals.pop(0)
            return status, _REFUSAL.format(code=code).encode()
        key = f"key-{len(self.requests)}"
        self.expiries[key] = time.time() + self.lifetime_s
        expiration = datetime.fromtimestamp(self.expiries[key], UTC).isoformat()
        return 200, _ANSWER.format(key=key, expiration=expiration).encode()

    def refuse(self, status: int, code: str, part: str, *, times: int) -> None:
        """Have the guard refuse requests whose address holds ``part``."""
        self.forbidden += [(status, code, part)] * times

    def guard(self, app: Any) -> Any:
        """A WSGI application that only keys of this service open, with their session, until they expire."""

        def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            signed = f"{environ.get('HTTP_AUTHORIZATION', '')} {environ.get('QUERY_STRING', '')}"
            found = _CREDENTIAL.search(signed)
            key = found[1] if found else "none"
            if key == "key-id":
                # Who puts the objects there.
                return app(environ, start)  # type: ignore[no-any-return]
            if self.forbidden and self.forbidden[0][2] in f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}":
                status, code, _ = self.forbidden.pop(0)
                start(f"{status} Refused", [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]
            session = f"{environ.get('HTTP_X_AMZ_SECURITY_TOKEN', '')} {environ.get('QUERY_STRING', '')}"
            is_open = self.expiries.get(key, 0) > time.time() and f"session-of-{key}" in session
            if not is_open:
                start("403 Forbidden", [("Content-Type", "application/xml")])
                return [f"<Error><Code>ExpiredToken</Code><Message>{key}</Message></Error>".encode()]
            self.used.append(key)
            time.sleep(self.delay_s)
            return app(environ, start)  # type: ignore[no-any-return]

        return guarded
