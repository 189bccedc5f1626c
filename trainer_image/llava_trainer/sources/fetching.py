"""Every source of a run, fetched into its volume: what prepare does first."""

import contextlib
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import httpx
from pydantic import ValidationError

from llava_api.base import Lenient
from llava_api.constants import DOWNLOAD_CA_PATH, INPUTS_PATH, SECRETS_PATH, SecretRole
from llava_api.run_config import RunConfig
from llava_api.text import show
from llava_trainer.attempts.takeover import earlier_of
from llava_trainer.files import make_folder, tell_names, write_whole
from llava_trainer.reporting import Reporter
from llava_trainer.sources import web
from llava_trainer.sources.address import BucketAddress, ClaimAddress, HubAddress, WebAddress, parse_address
from llava_trainer.sources.bucket import Bucket
from llava_trainer.sources.claims import check_claim
from llava_trainer.sources.credentials import Credentials, read_credentials, web_headers
from llava_trainer.sources.gathering import Catalogue, Gatherer, make_catalogue
from llava_trainer.sources.hub import Repository, RepositoryType
from llava_trainer.sources.journal import Journal, state_of
from llava_trainer.sources.needs import gather_dataset, gather_model
from llava_trainer.sources.network import Network, build_client, read_network
from llava_trainer.sources.packed import ARCHIVE_SUFFIX, fetch_and_unpack
from llava_trainer.sources.pictures import may_be_needed
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.refusals import refused, secret_field
from llava_trainer.sources.retrying import Patience, Retrier
from llava_trainer.sources.roles import Role, list_roles
from llava_trainer.sources.selection import is_model_file
from llava_trainer.sources.transfer import Downloader

_COMMIT_FILE = "commit.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the operator puts around a stage; tests and local runs put other things there."""

    secrets: Path = Path(SECRETS_PATH)
    ca_file: Path = Path(DOWNLOAD_CA_PATH)
    claims: Path = Path(INPUTS_PATH)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, kw_only=True)
class Input:
    """One source, as it now lies on a disk."""

    path: Path
    """A folder; of a projector on a claim or behind https:// it may be a file."""
    origin: str
    """The source, with the commit where there is one; without query and digest."""


class _Commit(Lenient):
    source: str
    commit: str


def fetch_inputs(config: RunConfig, reporter: Reporter, surroundings: Surroundings | None = None) -> dict[str, Input]:
    """Fetch what is not on a claim; returns every source of the run by its role (``roles``).

    What an earlier attempt has fetched is verified and not fetched again, and a hub repository stays at the commit
    that its revision was then.

    Raises:
        StageError: SourceRefused, SourceUnavailable or StorageFull, naming field, address and fix.
    """
    around = surroundings or Surroundings()
    network = read_network(config.download, around.ca_file, around.secrets / SecretRole.DOWNLOAD, around.environ)
    progress = Progress(reporter)
    with build_client(network) as client:
        errand = _Errand(config=config, around=around, network=network, client=client, progress=progress)
        return {role.name: errand.fetch(role) for role in list_roles(config)}


@dataclass(frozen=True, kw_only=True)
class _Errand:
    """What fetching a role takes."""

    config: RunConfig
    around: Surroundings
    network: Network
    client: httpx.Client
    progress: Progress

    def fetch(self, role: Role) -> Input:
        address = parse_address(role.source, role.field)
        if isinstance(address, ClaimAddress):
            path = role.mounted or self.around.claims / address.claim / address.path
            what = f"{role.field}: {show(role.source)}"
            if not path.exists():
                there = next(parent for parent in path.parents if parent.exists())
                told = f"there is no {path.relative_to(there)} on the claim beside {tell_names(there)}"
                raise refused(f"{what}: {told}; correct the path in {role.field}")
            check_claim(path, _claim_root(path, address), what, look_inside=role.dataset is None)
            return Input(path=path, origin=show(role.source))
        folder = self.config.volume.download_dir(role.name)
        make_folder(folder)
        credentials = read_credentials(self.around.secrets / role.secret, secret_field(role.field))
        downloader = Downloader(
            client=self.client, field=role.field, volume=self.config.volume_root, progress=self.progress,
            patience=self.around.patience,
            stop=threading.Event(),
        )  # fmt: skip
        if isinstance(address, WebAddress) and address.kind == "archive":
            return self._fetch_archive(role, address, web_headers(credentials), folder, downloader)
        if isinstance(address, WebAddress) and address.kind == "file":
            with Journal(folder) as journal:
                downloader.fetch(web.whole_file(address, web_headers(credentials)), journal)
            return Input(path=folder / address.name, origin=web.show(address))
        with Journal(folder) as journal:
            gatherer = Gatherer(
                catalogue=self._list(role, address, credentials, folder, downloader), downloader=downloader,
                journal=journal, progress=self.progress,
            )  # fmt: skip
            if role.dataset is None:
                gather_model(gatherer)
            else:
                gather_dataset(gatherer, role.dataset, role.pictures)
        return Input(path=folder, origin=gatherer.catalogue.address)

    def _list(
        self, role: Role, address: HubAddress | BucketAddress | WebAddress, credentials: Credentials, folder: Path,
        downloader: Downloader,
    ) -> Catalogue:  # fmt: skip
        dataset = role.dataset

        def is_wanted(name: str) -> bool:
            return is_model_file(name) if dataset is None else may_be_needed(dataset, name)

        told = show(role.source)
        repeatedly = Retrier(what=f"{role.field}: {told}", patience=self.around.patience, stop=downloader.stop)
        self.progress.begin(f"{role.field} {told}: listing it")
        if isinstance(address, HubAddress):
            kind: RepositoryType = "model" if dataset is None else "dataset"
            repository = Repository(
                address, kind=kind, token=credentials.token, network=self.network, field=role.field,
                repeatedly=repeatedly,
            )  # fmt: skip
            commit = _read_commit(folder, role.source) or repository.resolve()
            write_whole(state_of(folder) / _COMMIT_FILE, _Commit(source=role.source, commit=commit).model_dump_json())
            logger.info("%s: %s is at commit %s", role.field, told, commit)
            return make_catalogue(
                f"hf://{address.repository}@{commit}", repository.list_files(commit, is_wanted),
                lambda listed: repository.locate(listed, commit), role.field,
            )  # fmt: skip
        if isinstance(address, BucketAddress):
            bucket = Bucket(address, credentials, self.client, role.field)
            return make_catalogue(told, bucket.list_files(repeatedly, is_wanted), bucket.locate, role.field)
        headers = web_headers(credentials)
        return Catalogue(
            address=web.show(address), names=None,
            find=lambda name: web.file_below(address, name, headers, role.field),
        )  # fmt: skip

    def _fetch_archive(
        self, role: Role, address: WebAddress, headers: Mapping[str, str], folder: Path, downloader: Downloader
    ) -> Input:
        origin = web.show(address)
        fetch_and_unpack(
            web.whole_file(address, headers), role.source, keep=folder.with_name(f"{folder.name}{ARCHIVE_SUFFIX}"),
            folder=folder, downloader=downloader, progress=self.progress,
        )  # fmt: skip
        return Input(path=_descend(folder, role.dataset.file if role.dataset else "config.json"), origin=origin)


def _claim_root(path: Path, address: ClaimAddress) -> Path:
    """Where the claim is mounted of which ``path`` is a folder."""
    parts = PurePosixPath(address.path).parts
    return path.parents[len(parts) - 1] if parts and path.parts[-len(parts) :] == parts else path


def _descend(folder: Path, wanted: str) -> Path:
    """The folder inside an archive that holds ``wanted``: often everything lies in one folder.

    Others may stand beside it (macOS puts ``__MACOSX`` there), but no other that holds it, too.
    """
    if (folder / wanted).exists():
        return folder
    homes = [inside for inside in folder.iterdir() if inside.is_dir() and (inside / wanted).exists()]
    return homes[0] if len(homes) == 1 else folder


def _read_commit(folder: Path, source: str) -> str | None:
    """The commit that this attempt, or one that it has taken over, has begun to fetch."""
    for place in (folder, *earlier_of(folder)):
        with contextlib.suppress(FileNotFoundError, ValidationError):
            known = _Commit.model_validate_json((state_of(place) / _COMMIT_FILE).read_bytes())
            if known.source == source:
                return known.commit
    return None
