"""Files behind https://: by name below a folder, or one archive."""

from collections.abc import Mapping
from urllib.parse import quote, urlsplit, urlunsplit

from llava_api.text import escape
from llava_trainer.sources.address import WebAddress
from llava_trainer.sources.remote import Digest, RemoteFile, check_name


def file_below(address: WebAddress, name: str, credential: Mapping[str, str], field: str) -> RemoteFile:
    """The file ``name`` below a folder.

    Raises:
        StageError: SourceRefused, if the name leaves the folder.
    """
    name = check_name(name, field, show(address))
    parts = urlsplit(address.url)
    url = urlunsplit(parts._replace(path=f"{parts.path}{quote(name)}"))
    return RemoteFile(name=name, address=f"{show(address)}{name}", url=lambda: url, credential=credential)


def whole_file(address: WebAddress, credential: Mapping[str, str]) -> RemoteFile:
    """The archive or weights file that the address names."""
    return RemoteFile(
        name=address.name,
        address=show(address),
        url=lambda: address.url,
        credential=credential,
        digest=Digest(algorithm="sha256", hex=address.sha256) if address.sha256 else None,
    )


def show(address: WebAddress) -> str:
    """The address for messages: without a query, in which there may be a signature."""
    return escape(urlunsplit(urlsplit(address.url)._replace(query="", fragment="")))
