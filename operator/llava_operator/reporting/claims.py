"""What a token says of its pod, before anybody has confirmed it: enough to tell junk from what is worth a review."""

import base64
import json
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from llava_api.constants import TOKEN_AUDIENCE
from llava_operator.kube.objects import Key

MAX_TOKEN = 8190
"""Characters; aiohttp takes no longer header. Kubernetes' tokens have about 1,200."""

_Name = Annotated[str, Field(min_length=1, max_length=253)]


class _Claimed(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Object(_Claimed):
    name: _Name
    uid: Annotated[str, Field(min_length=1, max_length=64)]


class _Bound(_Claimed):
    namespace: _Name
    pod: _Object


class _Claims(_Claimed):
    """See KEP-1205: bound service-account tokens are JWTs (RFC 7519)."""

    aud: str | list[str]
    bound: Annotated[_Bound, Field(alias="kubernetes.io")]


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """The pod that a token was issued to, or says so."""

    pod: Key
    pod_uid: str


def read_claims(token: str) -> Speaker | None:
    """The pod that ``token`` claims to be issued to for this endpoint; None if it does not even claim that.

    Nothing of it is proven: whoever knows a pod's names and UID can write such a token.
    """
    parts = token.split(".", 3)
    if len(token) > MAX_TOKEN or not token.isascii() or len(parts) != 3:
        return None
    try:
        raw = base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True)
        claims = _Claims.model_validate(json.loads(raw))
    except (ValueError, RecursionError):
        # binascii's, json's and pydantic's errors are ValueErrors.
        return None
    if TOKEN_AUDIENCE not in ([claims.aud] if isinstance(claims.aud, str) else claims.aud):
        return None
    return Speaker(pod=Key(claims.bound.namespace, claims.bound.pod.name), pod_uid=claims.bound.pod.uid)
