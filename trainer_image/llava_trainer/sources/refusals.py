"""How fetching fails: for good (SourceRefused), or for now (SourceUnavailable).

Publishing fails in the same ways, by the same servers' words: what a refusal means differs in what was asked for
(``Access``), and which reason it has is for ``publishing.refusals`` to say.
"""

from dataclasses import dataclass

from llava_api.failures import Reason
from llava_api.text import show
from llava_trainer.errors import StageError
from llava_trainer.retrying import TransientError

_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset(
    {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "ThrottlingException"}
)
_FULL_STATUS = 507
_FULL_CODES = frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"})
_REGION_CODES = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_WRONG_KEY_CODES = frozenset({"InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"})


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a server is asked for, in the words of what is said where it refuses."""

    verb: str
    """What the credentials may not do."""
    lasts: str
    """What keys have to last for."""
    remedy: str
    """What follows when the Secret is renewed."""
    permissions: str
    """What a role has to be allowed in S3."""


READING = Access(
    verb="read",
    lasts="as long as the download takes",
    remedy="create the run again",
    permissions="s3:ListBucket of the bucket and s3:GetObject of what is in it (and kms:Decrypt where that is "
    "encrypted with a key of KMS)",
)
WRITING = Access(
    verb="write",
    lasts="as long as publishing takes",
    remedy="raise spec.retry",
    permissions="s3:ListBucket and s3:ListBucketMultipartUploads of the bucket, and s3:GetObject, s3:PutObject, "
    "s3:AbortMultipartUpload and s3:ListMultipartUploadParts of what is in it (and kms:GenerateDataKey and kms:Decrypt "
    "where that is encrypted with a key of KMS)",
)


class MissingError(StageError):
    """The server has no such file: for some callers no failure."""


def refused(message: str) -> StageError:
    """It does not exist, may not be read, or is not what it should be."""
    return StageError(Reason.SOURCE_REFUSED, message)


def unavailable(message: str) -> StageError:
    """The network or the server is in the way; the same run may succeed later."""
    return StageError(Reason.SOURCE_UNAVAILABLE, message)


def explain_failure(
    status: int, field: str, address: str, *, code: str = "", wait_s: float | None = None, role: str | None = None,
    access: Access = READING,
) -> StageError | TransientError:  # fmt: skip
    """What an answer without content means: worth another try, or one that no try will mend.

    Args:
        status: of HTTP.
        field: the source's field.
        address: for messages.
        code: S3's own word for it, where there is one.
        wait_s: what the server asked to wait.
        role: as which it was asked by the pod's own identity; None where a Secret says as whom, or nobody does.
        access: what it was asked for.
    """
    if access is WRITING and (status == _FULL_STATUS or code in _FULL_CODES):
        return refused(f"{field}: {address} has no room left (HTTP {status}): make room there, and raise spec.retry")
    if status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES:
        return TransientError(f"HTTP {status}{f' ({code})' if code else ''}", wait_s=wait_s)
    if role is not None and (refusal := _explain_role(status, field, address, code, role, access)) is not None:
        return refusal
    secret = secret_field(field)
    if code in _EXPIRED_CODES:
        return refused(
            f"{field}: {address}: the session token in {secret} has expired: renew the Secret with keys that last "
            f"{access.lasts}, and {access.remedy}"
        )
    if code in _REGION_CODES:
        return refused(f"{field}: {address} is in another region than key region of {secret} says: set it")
    if code in _WRONG_KEY_CODES:
        return refused(f"{field}: {address}: the keys in {secret} are wrong ({code}): correct them")
    if code == "RequestTimeTooSkewed":
        return unavailable(f"{field}: {address}: the node's clock is not the server's ({code}): set it")
    told = f"{field}: {address}{f' ({code})' if code else ''} was refused with HTTP {status}"
    if status == 401:
        return refused(f"{told}: credentials are missing or wrong; set {secret} to a Secret with the right keys")
    if status == 403:
        return refused(f"{told}: the credentials in {secret} may not {access.verb} it, or there are none")
    if status in (404, 410):
        return MissingError(Reason.SOURCE_REFUSED, f"{told}: it does not exist; correct {field}")
    if status == 407:
        return unavailable(
            f"{told} by the proxy, which wants credentials; put its address with them (http://NAME:PASSWORD@HOST:PORT) "
            "into key httpsProxy of the Secret that spec.download.secretRef names"
        )
    return refused(f"{told}; correct {field}")


def _explain_role(
    status: int, field: str, address: str, code: str, role: str, access: Access
) -> StageError | TransientError | None:
    """What a refusal means where keys come from the pod's identity: no Secret has a part in it."""
    told, role = f"{field}: {address}", f"role {show(role, max_chars=200)}"
    if code in _EXPIRED_CODES:
        # The next try is signed with new ones.
        return TransientError(f"keys of {role} have expired ({code})")
    if code in _REGION_CODES:
        return refused(
            f"{told} is in another region than AWS_REGION in the pod says: correct that where the pod's identity is set"
        )
    if code in _WRONG_KEY_CODES:
        return refused(
            f"{told}: keys of {role} are not taken there ({code}): look at AWS_ENDPOINT_URL_S3 and "
            "AWS_ENDPOINT_URL_STS in the pod, which have to belong together"
        )
    if status in (401, 403) and code != "RequestTimeTooSkewed":
        return refused(
            f"{told}{f' ({code})' if code else ''} was refused with HTTP {status}: {role} may not {access.verb} it: "
            f"allow it {access.permissions}, or name a ServiceAccount of another role in "
            "spec.scheduling.serviceAccountName"
        )
    return None


def secret_field(field: str) -> str:
    """The field that names the Secret of a source: ``spec.model.base`` → ``spec.model.secretRef``."""
    return f"{field.rpartition('.')[0]}.secretRef"
