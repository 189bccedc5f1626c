"""Files that a hub keeps in Xet, by Xet's own client: an installer's opt-in, whose limits docs/security.md states.

The client gives bytes and nothing else: they are counted, hashed, written, continued and journalled by ``transfer``, as
those of every file. They have to be counted: where a request fails, it often ends a file early without a word.
It is not handed the hub's token. The hub is asked by our own client, at an address that we make, for a short-lived one.
"""

from collections.abc import Generator, Mapping
from urllib.parse import urlsplit

from huggingface_hub.utils._xet import (
    XetConnectionInfo,
    XetFileData,
    XetTokenType,
    is_valid_xet_hash,
    refresh_xet_connection_info,
    xet_connection_info_refresh_url,
)

from llava_api.addresses import show_host
from llava_api.text import show
from llava_trainer.retrying import TransientError
from llava_trainer.sources.network import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from llava_trainer.sources.refusals import refused
from llava_trainer.sources.responses import origin_of

__all__ = ["XetStore", "is_valid_xet_hash"]
_MEBIBYTE = 1 << 20
_SETTINGS = {
    "telemetry.enabled": False,
    "client.connect_timeout": f"{CONNECT_TIMEOUT_S:.0f}s",
    "client.read_timeout": f"{READ_TIMEOUT_S:.0f}s",
    # Trying again is this package's own business: one place, one limit.
    "client.retry_max_attempts": 0,
    # By itself it takes a quarter of the machine's memory for eight files at once.
    "reconstruction.download_buffer_size": 64 * _MEBIBYTE,
    "reconstruction.download_buffer_perfile_size": 32 * _MEBIBYTE,
    "reconstruction.download_buffer_limit": 256 * _MEBIBYTE,
    "reconstruction.min_prefetch_buffer": 32 * _MEBIBYTE,
    "reconstruction.min_reconstruction_fetch_size": 64 * _MEBIBYTE,
}


class XetStore:
    """What a repository keeps in Xet.

    Args:
        endpoint: of the hub.
        repository: its name.
        kind: model or dataset.
        credential: headers for the hub.
        what: field and address, for messages.

    Raises:
        StageError: SourceRefused, if this image has no client.
    """

    def __init__(self, endpoint: str, repository: str, kind: str, credential: Mapping[str, str], what: str) -> None:
        try:
            import hf_xet
        except ImportError as error:
            # It is built for the usual processors only.
            raise refused(f"{what}: this image has no hf_xet: have xet switched off in the installation") from error
        self._client = hf_xet
        self._session = hf_xet.XetSession(hf_xet.XetConfig().with_config(_SETTINGS))
        self._hub = endpoint
        self._repository = repository
        self._kind = kind
        self._credential = dict(credential)
        self._what = what

    def ask_place(self, commit: str) -> XetConnectionInfo:
        """Where the files of a commit are, with a short-lived token; kept by the library until it is about to expire.

        Raises:
            ValueError, HfHubHTTPError: the hub does not tell.
            StageError: SourceRefused, if it is to be sent in clear, or to no address.
        """
        url = xet_connection_info_refresh_url(
            token_type=XetTokenType.READ, repo_id=self._repository, repo_type=self._kind, revision=commit,
            endpoint=self._hub,
        )  # fmt: skip
        wanted = XetFileData(file_hash="", refresh_route=url)
        place = refresh_xet_connection_info(file_data=wanted, headers=self._credential)
        try:
            scheme = origin_of(place.endpoint)[0]
        except ValueError:
            scheme = ""
        if scheme != "https" and scheme != urlsplit(self._hub).scheme:
            where = show_host(place.endpoint) or "a place that is not shown"
            raise refused(
                f"{self._what}: the hub keeps its files at {where}, which is no https address: have xet switched off "
                "in the installation"
            )
        return place

    def read(self, place: XetConnectionInfo, file_hash: str, size: int, offset: int) -> Generator[bytes]:
        """The bytes of a file from ``offset`` on.

        Raises:
            TransientError: whatever went wrong; they end early.
        """
        try:
            with self._session.new_download_stream_group(
                endpoint=place.endpoint, token=place.access_token, token_expiry_unix_secs=place.expiration_unix_epoch
            ) as group:
                for chunk in group.download_stream(self._client.XetFileInfo(file_hash, size), start=offset):
                    yield chunk
                    offset += len(chunk)
        except (OSError, RuntimeError) as error:
            # It tells addresses without their queries.
            text = show(f"{type(error).__name__}: {error}", max_chars=300)
            raise TransientError(f"Xet's client: {text}") from error
        if offset < size:
            raise TransientError(f"Xet's client: it ended after {offset:,} of {size:,} bytes and told no error")
