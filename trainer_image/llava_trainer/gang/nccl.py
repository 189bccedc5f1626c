"""What NCCL says where it fails: by itself, or because another rank is gone.

It comes as an exception of PyTorch's, or, where an operation fails later than it was begun, in the log of a rank
that PyTorch's watchdog over NCCL ends (ProcessGroupNCCL.cpp). NCCL's words are those of ncclGetErrorWithVersion and
getNcclErrorDetailStr in NCCLUtils.cpp.
"""

import re
from dataclasses import dataclass

from llava_api.failures import Reason

_ERROR = re.compile(r"NCCL error[^\n]*|Watchdog caught collective operation timeout[^\n]*")
_DETAIL = re.compile(r"nccl\w+Error: [^\n]*|ncclInvalid\w+: [^\n]*")
_LAST_ERROR = re.compile(r"Last error:\s*\n?([^\n]+)")
_REMOTE = ("remote process exited", "ncclRemoteError")
_MAX_QUOTE = 300


@dataclass(frozen=True, kw_only=True)
class NcclFault:
    """An error of NCCL's."""

    reason: Reason
    """NcclFailed, or RendezvousFailed where it lost another rank."""
    message: str


def explain_nccl_fault(text: str) -> NcclFault | None:
    """What NCCL says in ``text`` (of an exception, or the end of a log); None if nothing."""
    error = _ERROR.search(text)
    if error is None:
        return None
    told = text[error.start() :]
    parts = [error[0].strip()]
    parts += [found[0].strip() for found in [_DETAIL.search(told)] if found]
    parts += [f"last error: {found[1].strip()}" for found in [_LAST_ERROR.search(told)] if found]
    is_remote = any(sign in told for sign in _REMOTE)
    return NcclFault(
        reason=Reason.RENDEZVOUS_FAILED if is_remote else Reason.NCCL_FAILED,
        message="; ".join(part[:_MAX_QUOTE] for part in parts),
    )
