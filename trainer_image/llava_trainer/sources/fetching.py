"""Every source of a run, fetched into its volume: what prepare does first."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from llava_api.base import Lenient
from llava_api.constants import (
    DESTINATIONS_PATH,
    DOWNLOAD_CA_PATH,
    ENV_DISABLE_XET,
    INPUTS_PATH,
    SECRETS_PATH,
    SecretRole,
)
from llava_api.run_config import RunConfig
from llava_api.spec import Dataset, Validation
from llava_api.text import show
from llava_trainer.attempts.takeover import earlier_of
from llava_trainer.data.shards import find_shards, is_pattern
from llava_trainer.files import make_folder, write_whole
from llava_trainer.reporting import Reporter
from llava_trainer.retrying import Patience
from llava_trainer.sources import web
from llava_trainer.sources.address import BucketAddress, ClaimAddress, HubAddress, WebAddress, parse_address
from llava_trainer.sources.archive import ARCHIVE_SUFFIX, fetch_and_unpack
from llava_trainer.sources.bucket import Bucket
from llava_trainer.sources.claims import check_claim
from llava_trainer.sources.credentials import Credentials, read_credentials, web_headers
from llava_trainer.sources.downloads import Catalogue, Downloads, make_catalogue
from llava_trainer.sources.fetched import read_note, state_of
from llava_trainer.sources.hub import Repository
from llava_trainer.sources.journal import Journal
from llava_trainer.sources.network import Network, build_client, read_network
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.refusals import secret_field
from llava_trainer.sources.remote import RemoteFile
from llava_trainer.sources.selection import download_dataset, download_model, is_model_file, may_be_needed
from llava_trainer.sources.transfer import Downloader
from llava_trainer.sources.web_identity import read_web_identity

_COMMIT_FILE = "commit.json"
MODEL_ROLES = {
    "source": "model", "base": "base", "languageModel": "language-model", "visionTower": "vision-tower",
    "projector": "projector", "adapter": "adapter",
}  # fmt: skip
"""What the sources of ``spec.model`` are for, by their fields."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the operator puts around a stage; tests and local runs put other things there."""

    secrets: Path = Path(SECRETS_PATH)
    ca_file: Path = Path(DOWNLOAD_CA_PATH)
    claims: Path = Path(INPUTS_PATH)
    destinations: Path = Path(DESTINATIONS_PATH)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True, kw_only=True)
class Input:
    """One source, as it now lies on a disk."""

    path: Path
    """A folder; of a projector on a claim or behind https:// it may be a file."""
    origin: str
    """The source, with the commit where there is one; without query and digest."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """One source of a run."""

    name: str
    """Also its folder on the run's volume (``RunVolume.download_dir``)."""
    field: str
    """Where it stands in the spec."""
    source: str
    secret: SecretRole
    mounted: Path | None = None
    """Where the operator has mounted it, where it said so; None: below INPUTS_PATH."""
    dataset: Dataset | None = None
    """None for models."""
    images: tuple[str, ...] = ()
    """Images that are needed besides those that the dataset's files name, below its folder of images."""


class _Commit(Lenient):
    source: str
    commit: str


def fetch_inputs(config: RunConfig, reporter: Reporter, surroundings: Surroundings | None = None) -> dict[str, Input]:
    """Fetch what is not on a claim; returns every source of the run by its role.

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


def list_roles(config: RunConfig) -> Iterator[Role]:
    """The sources of a run, in the order of the spec."""
    for key, source in config.model.sources.items():
        yield Role(
            name=MODEL_ROLES[key], field=f"spec.model.{key}", source=source, secret=SecretRole.MODEL,
            mounted=config.model_dir if key == "source" else None,
        )  # fmt: skip
    prompts = tuple(prompt.image for prompt in config.evaluation.prompts if prompt.image is not None)
    yield Role(
        name="dataset", field="spec.dataset.source", source=config.dataset.source, secret=SecretRole.DATASET,
        mounted=config.dataset_dir, dataset=config.dataset, images=prompts,
    )  # fmt: skip
    if config.alignment is not None:
        yield Role(
            name="alignment-dataset", field="spec.alignment.dataset.source", source=config.alignment.dataset.source,
            secret=SecretRole.ALIGNMENT_DATASET, mounted=config.alignment_dir,
            dataset=_all_of(config.alignment.dataset),
        )  # fmt: skip
    for index, part in enumerate(config.mixture):
        role = SecretRole.of_mixture(index)
        yield Role(
            name=role, field=f"spec.mixture[{index}].dataset.source", source=part.dataset.source, secret=role,
            mounted=config.mixture_dirs[index] if index < len(config.mixture_dirs) else None,
            dataset=_all_of(part.dataset),
        )  # fmt: skip
    if config.evaluation.retention is not None:
        dataset = config.evaluation.retention.dataset
        yield Role(
            name=SecretRole.RETENTION, field="spec.evaluation.retention.dataset.source", source=dataset.source,
            secret=SecretRole.RETENTION, mounted=config.retention_dir, dataset=_all_of(dataset),
        )  # fmt: skip


def _all_of(dataset: Dataset) -> Dataset:
    """A dataset of which nothing is held out: a file with held-out samples is not needed."""
    return dataset.model_copy(update={"validation": Validation()})


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
            told = show(role.source)
            path = role.mounted or self.around.claims / address.claim / address.path
            check_claim(path, address, f"{role.field}: {told}", is_model=role.dataset is None)
            return Input(path=path, origin=told)
        folder = self.config.volume.download_dir(role.name)
        make_folder(folder)
        credentials = read_credentials(self.around.secrets / role.secret, secret_field(role.field))
        downloader = Downloader(
            client=self.client, field=role.field, volume=self.config.volume_root, progress=self.progress,
            patience=self.around.patience, stop=threading.Event(),
        )  # fmt: skip
        if isinstance(address, WebAddress) and address.kind != "folder":
            return self._fetch_one(role, address, web.whole_file(address, web_headers(credentials)), folder, downloader)
        catalogue = self._list(role, address, credentials, folder, downloader)
        with Journal(folder) as journal:
            downloads = Downloads(catalogue=catalogue, downloader=downloader, journal=journal)
            if role.dataset is None:
                download_model(downloads)
            else:
                download_dataset(downloads, role.dataset, role.images)
        return Input(path=folder, origin=catalogue.address)

    def _list(
        self, role: Role, address: HubAddress | BucketAddress | WebAddress, credentials: Credentials, folder: Path,
        downloader: Downloader,
    ) -> Catalogue:  # fmt: skip
        dataset = role.dataset

        def is_wanted(name: str) -> bool:
            return is_model_file(name) if dataset is None else may_be_needed(dataset, name)

        told = show(role.source)
        repeatedly = downloader.retrier(told)
        self.progress.begin(f"{role.field} {told}: listing it")
        if isinstance(address, HubAddress):
            repository = Repository(
                address, kind="model" if dataset is None else "dataset", token=credentials.token, network=self.network,
                field=role.field, repeatedly=repeatedly, uses_xet=self.around.environ.get(ENV_DISABLE_XET) == "0",
            )  # fmt: skip
            note = state_of(folder) / _COMMIT_FILE
            commit = _read_commit(folder, role.source) or repository.resolve()
            write_whole(note, _Commit(source=role.source, commit=commit).model_dump_json())
            logger.info("%s: %s is at commit %s", role.field, told, commit)
            return make_catalogue(
                f"hf://{address.repository}@{commit}", repository.list_files(commit, is_wanted),
                lambda listed: repository.locate(listed, commit), role.field,
            )  # fmt: skip
        if isinstance(address, BucketAddress):
            has_secret = (self.around.secrets / role.secret).exists()
            identity = None if has_secret else read_web_identity(self.around.environ)
            bucket = Bucket(address, credentials, self.client, role.field, repeatedly, identity=identity)
            return make_catalogue(told, bucket.list_files(is_wanted), bucket.locate, role.field)
        headers = web_headers(credentials)
        return Catalogue(
            address=web.show(address), names=None,
            find=lambda name: web.file_below(address, name, headers, role.field),
        )  # fmt: skip

    def _fetch_one(
        self, role: Role, address: WebAddress, remote: RemoteFile, folder: Path, downloader: Downloader
    ) -> Input:  # fmt: skip
        """An address that is one file: an archive, which is unpacked, or weights."""
        if address.kind == "file":
            with Journal(folder) as journal:
                downloader.fetch(remote, journal)
            return Input(path=folder / remote.name, origin=remote.address)
        keep = folder.with_name(f"{folder.name}{ARCHIVE_SUFFIX}")
        fetch_and_unpack(remote, role.source, keep=keep, folder=folder, downloader=downloader)
        return Input(path=_descend(folder, role.dataset.file if role.dataset else "config.json"), origin=remote.address)


def _descend(folder: Path, wanted: str) -> Path:
    """The folder inside an archive that holds ``wanted``: often everything lies in one folder.

    Others may stand beside it (macOS puts ``__MACOSX`` there), but no other that holds it, too.
    """

    def holds(place: Path) -> bool:
        try:
            return (place / wanted).exists() or (is_pattern(wanted) and bool(find_shards(place, wanted)))
        except ValueError:
            # Too many, or with odd names: the data's checks tell.
            return True

    if holds(folder):
        return folder
    homes = [inside for inside in folder.iterdir() if inside.is_dir() and holds(inside)]
    return homes[0] if len(homes) == 1 else folder


def _read_commit(folder: Path, source: str) -> str | None:
    """The commit that this attempt, or one that it has taken over, has begun to fetch."""
    for place in (folder, *earlier_of(folder)):
        known = read_note(state_of(place) / _COMMIT_FILE, _Commit)
        if known is not None and known.source == source:
            return known.commit
    return None
