"""The bearer token of a request (RFC 6750)."""

from aiohttp import web


def read_bearer(request: web.Request) -> str | None:
    """The token; None where there is none, or a credential of another kind."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
