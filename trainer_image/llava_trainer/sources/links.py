"""Pictures that a dataset names by http address, from the hosts that the installation allows.

What is asked for is what the data says, and prepare may reach what its author does not: so no host is asked that the
installer has not named, not after a redirect either, and no credential is sent. An address that leads to no picture is
the entry's fault; a server that is in trouble ends the stage, which is tried again.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import httpx

from llava_api.addresses import is_allowed_address, show_host
from llava_api.constants import ENV_PICTURE_HOSTS, SecretRole
from llava_api.run_config import RunConfig
from llava_trainer.data.embedded import MAX_IMAGE_BYTES
from llava_trainer.data.image_folder import name_kept, show_link
from llava_trainer.files import aside_of, make_folder
from llava_trainer.reporting import Reporter
from llava_trainer.retrying import Patience, Retrier, TransientError
from llava_trainer.sources.downloads import NUM_CONNECTIONS
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.sources.network import build_client, read_network
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.refusals import explain_failure, refused
from llava_trainer.sources.responses import WrongRedirectError, explain_transport, open_response, parse_wait_s
from llava_trainer.sources.selection import read_links

MAX_LINKS = 1_000_000
_WAITING = 1000
"""Addresses that wait for a connection at a time."""
_HEADERS = {"Accept": "image/*"}

logger = logging.getLogger(__name__)


class _NoPictureError(Exception):
    """An address that leads to no picture; the message says why, as what follows its name."""


def fetch_links(config: RunConfig, reporter: Reporter, surroundings: Surroundings | None = None) -> dict[str, str]:
    """Fetch the pictures that the run's datasets name by address to where prepare keeps pictures.

    Args:
        config: with the folders of the datasets.
        reporter: told how much has come in.
        surroundings: what the operator puts around the stage; None for its places.

    Returns:
        Why those that are not there are not, by address. Where the installation allows no host, nothing is looked for.

    Raises:
        StageError: SourceUnavailable, if a server or the network is in trouble; SourceRefused, if there are too many.
    """
    around = surroundings or Surroundings()
    hosts = tuple(filter(None, around.environ.get(ENV_PICTURE_HOSTS, "").split(",")))
    links = _list_links(config) if hosts else {}
    if not links:
        return {}
    network = read_network(config.download, around.ca_file, around.secrets / SecretRole.DOWNLOAD, around.environ)
    progress = Progress(reporter)
    progress.begin(f"{len(links):,} pictures by address")
    with build_client(network, lambda way_out: _OnlyAllowed(way_out, hosts)) as client:
        fetcher = _Fetcher(
            client=client, hosts=hosts, folder=config.volume.embedded_images_dir, progress=progress,
            patience=around.patience, stop=threading.Event(),
        )  # fmt: skip
        unfetched = dict(fetcher.fetch_all(links))
    progress.end()
    logger.info("pictures by address: %d fetched, %d not", len(links) - len(unfetched), len(unfetched))
    return unfetched


def _list_links(config: RunConfig) -> dict[str, str]:
    """Every address once, with the field of the dataset that names it."""
    datasets = [("spec.dataset", config.dataset, config.dataset_dir)]
    if config.alignment is not None and config.alignment_dir is not None:
        datasets.append(("spec.alignment.dataset", config.alignment.dataset, config.alignment_dir))
    mixed = zip(config.mixture, config.mixture_dirs, strict=True)
    datasets += ((f"spec.mixture[{n}].dataset", part.dataset, root) for n, (part, root) in enumerate(mixed))
    if config.evaluation.retention is not None and config.retention_dir is not None:
        second = config.evaluation.retention.dataset
        datasets.append(("spec.evaluation.retention.dataset", second, config.retention_dir))
    links: dict[str, str] = {}
    for field, dataset, root in datasets:
        for link in read_links(dataset, root):
            links.setdefault(link, field)
            if len(links) > MAX_LINKS:
                raise refused(
                    f"{field} names more than {MAX_LINKS:,} pictures by address: put them into the dataset, and name "
                    "their paths"
                )
    return links


@dataclass(frozen=True)
class _OnlyAllowed(httpx.BaseTransport):
    """Asks no host but those that are allowed, whoever sends on to it."""

    way_out: httpx.BaseTransport
    hosts: Sequence[str]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        address = str(request.url)
        if not is_allowed_address(address, self.hosts, insecure=True):
            raise _NoPictureError(_describe_foreign(address, self.hosts))
        return self.way_out.handle_request(request)

    def close(self) -> None:
        self.way_out.close()


def _describe_foreign(address: str, hosts: Sequence[str]) -> str:
    return (
        f"is at {show_host(address) or 'no host'}, but this installation fetches pictures from {', '.join(hosts)} "
        "alone (the chart's policy.pictureHosts): put it into the dataset and name its path, or write it as a data: URL"
    )


@dataclass(frozen=True, kw_only=True)
class _Fetcher:
    """Fetches several at a time."""

    client: httpx.Client
    hosts: Sequence[str]
    folder: Path
    progress: Progress
    patience: Patience
    stop: threading.Event

    def fetch_all(self, links: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Fetch all; yields those that are not there then, and why."""
        make_folder(self.folder)
        waiting = iter(links.items())
        with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="pictures") as pool:
            try:
                while part := list(islice(waiting, _WAITING)):
                    for (link, _), problem in zip(part, pool.map(self._fetch, part), strict=True):
                        if problem is not None:
                            yield link, problem
            finally:
                # Also when the pod is asked to stop while this waits.
                self.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, item: tuple[str, str]) -> str | None:
        link, field = item
        try:
            again = Retrier(what=f"{field}: {show_link(link)}", patience=self.patience, stop=self.stop)
            content = again(lambda: self._ask(link, field))
        except _NoPictureError as error:
            return str(error)
        path = self.folder / str(name_kept(link))
        aside = aside_of(path)
        aside.write_bytes(content)
        aside.rename(path)
        self.progress.add(len(content), show_link(link))
        return None

    def _ask(self, link: str, field: str) -> bytes:
        shown = show_link(link)
        content = bytearray()
        try:
            with open_response(self.client, link, _HEADERS, {}) as response:
                if response.status_code != httpx.codes.OK:
                    wait_s = parse_wait_s(response.headers)
                    found = explain_failure(response.status_code, field, shown, wait_s=wait_s)
                    raise (
                        found
                        if isinstance(found, TransientError)
                        else _NoPictureError(f"is refused with HTTP {response.status_code}: correct the address")
                    )
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise _NoPictureError("comes packed, although it was asked for as it is")
                for chunk in response.iter_raw():
                    content += chunk
                    if len(content) > MAX_IMAGE_BYTES:
                        raise _NoPictureError(f"has more than {MAX_IMAGE_BYTES:,} bytes: make it smaller")
        except WrongRedirectError as error:
            # One entry's address must not hold up all others.
            raise _NoPictureError(f"leads nowhere: {error}") from error
        except httpx.RequestError as error:
            raise explain_transport(error, field, shown) from error
        except (ValueError, httpx.InvalidURL) as error:
            # Of an address that cannot be asked for, or that a redirect leads to.
            raise _NoPictureError(f"is no address that can be asked for: {error}") from error
        return bytes(content)
