"""How fetching fails: for good (SourceRefused), or for now (SourceUnavailable)."""

from llava_api.failures import Reason
from llava_trainer.errors import StageError


class TransientError(Exception):
    """A try failed in a way that the next one may not.

    Attributes:
        wait_s: what the server asked to wait; None if it said nothing.
    """

    def __init__(self, message: str, *, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def refused(message: str) -> StageError:
    """It does not exist, may not be read, or is not what it should be."""
    return StageError(Reason.SOURCE_REFUSED, message)


def unavailable(message: str) -> StageError:
    """The network or the server is in the way; the same run may succeed later."""
    return StageError(Reason.SOURCE_UNAVAILABLE, message)


def explain_status(status: int, field: str, address: str) -> StageError:
    """What an HTTP status that is not worth another try means, and what can be done."""
    told = f"{field}: {address} was refused with HTTP {status}"
    secret = secret_field(field)
    if status == 401:
        return refused(f"{told}: credentials are missing or wrong; set {secret} to a Secret with the right keys")
    if status == 403:
        return refused(f"{told}: the credentials in {secret} may not read it, or there are none")
    if status in (404, 410):
        return refused(f"{told}: it does not exist; correct {field}")
    if status == 407:
        return unavailable(
            f"{told} by the proxy, which wants credentials; put its address with them (http://NAME:PASSWORD@HOST:PORT) "
            "into key httpsProxy of the Secret that spec.download.secretRef names"
        )
    return refused(f"{told}; correct {field}")


def secret_field(field: str) -> str:
    """The field that names the Secret of a source: ``spec.model.base`` → ``spec.model.secretRef``."""
    return f"{field.rpartition('.')[0]}.secretRef"
