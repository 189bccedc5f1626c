"""What the API server answers that is no success, typed by what can be done about it."""

from pydantic import BaseModel, ValidationError

from llava_api.text import show

MAX_TEXT = 4096
"""Longest message that is kept of a refusal: webhooks write them, too."""
LAST_RETRY_AFTER_S = 300.0
"""Longest wait that an answer may ask for."""


class KubeError(Exception):
    """The API server refused, or could not be reached (``status`` 0)."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class RetryableError(KubeError):
    """The same request may succeed later: timeout, overload, server error, expired credentials."""


class TooLongError(RetryableError):
    """An answer is longer than what the operator reads."""


class ConflictError(KubeError):
    """The object changed since it was read: the pass that read it is void."""


class AlreadyExistsError(KubeError):
    """An object of this name is there already."""


class NotFoundError(KubeError):
    """There is no such object."""


class ForbiddenError(KubeError):
    """Authorisation or an admission plug-in refused; the message says which. Both may think otherwise tomorrow."""


class RefusedError(KubeError):
    """Refused, and nothing says that it is for good: by an admission policy (422) or a webhook (400), for example."""


class InvalidError(KubeError):
    """Fields of the object itself are refused, by the API server's own validation: it will never be accepted."""


def error_of(status: int, body: bytes, retry_after: str | None) -> KubeError:
    """The typed error of an answer that is none of 2xx."""
    try:
        answer = _Refusal.model_validate_json(body)
    except ValidationError:
        # A proxy before the API server may answer with anything.
        answer = _Refusal(message=body[:256].decode(errors="replace"))
    message = show(answer.message or f"the API server answered {status}", max_chars=MAX_TEXT)
    after = None
    if retry_after and retry_after.isascii() and retry_after.isdecimal():
        after = min(LAST_RETRY_AFTER_S, float(retry_after))
    return _error_type(status, answer)(message, status=status, reason=answer.reason, retry_after_s=after)


def is_from_webhook(message: str) -> bool:
    """Whether a refusal is an admission webhook's, which may answer with any code, reason and details."""
    return message.startswith('admission webhook "')


class _Cause(BaseModel):
    field: str | None = None


class _Details(BaseModel):
    causes: list[_Cause] | None = None


class _Refusal(BaseModel):
    """What is used of Kubernetes' ``Status``."""

    reason: str = ""
    message: str = ""
    details: _Details | None = None

    @property
    def names_fields(self) -> bool:
        """Whether there are causes, and each names a field; a webhook's may as well, but tomorrow it may not mind."""
        causes = (self.details and self.details.causes) or []
        return bool(causes) and all(cause.field for cause in causes) and not is_from_webhook(self.message)


def _error_type(status: int, answer: _Refusal) -> type[KubeError]:
    if status == 409:
        return AlreadyExistsError if answer.reason == "AlreadyExists" else ConflictError
    if status in (401, 408, 429) or status >= 500:
        return RetryableError
    if status == 422 and answer.names_fields:
        return InvalidError
    return {403: ForbiddenError, 404: NotFoundError}.get(status, RefusedError)
