"""What is needed of a source, fetched: of a model its files, of a dataset its files and the pictures that they name."""

import logging
import posixpath
from dataclasses import replace
from pathlib import PurePosixPath

from llava_api.spec import Dataset
from llava_trainer.sources.gathering import Gatherer
from llava_trainer.sources.packed import fetch_and_unpack
from llava_trainer.sources.pictures import (
    list_companions,
    list_own_files,
    name_packed_pictures,
    place_pictures,
    read_picture_names,
)
from llava_trainer.sources.refusals import refused
from llava_trainer.sources.selection import PARTS, PICKLES, SAFETENSORS, SMALL_FILES, choose_model_files, shards_of

_NAMES_SHOWN = 5

logger = logging.getLogger(__name__)


def gather_model(gatherer: Gatherer) -> None:
    """Fetch a model's files.

    Raises:
        StageError: SourceRefused, if the source holds none; what fetching raises.
    """
    names = gatherer.catalogue.names
    if names is None:
        _gather_by_name(gatherer)
        return
    chosen = choose_model_files(names)
    if not chosen:
        raise refused(
            f"{gatherer.downloader.field}: {gatherer.catalogue.address} holds no file of a model (config.json, "
            "model.safetensors, ...): name the folder that does"
        )
    gatherer.gather(chosen)


def _gather_by_name(gatherer: Gatherer) -> None:
    """Fetch a model from a server that does not tell what it has."""
    indexes = {SAFETENSORS[0], PICKLES[0]}
    gatherer.gather([*SMALL_FILES, *indexes, *(f"{part}.safetensors" for part in PARTS)])
    gatherer.gather([f"{part}.bin" for part in PARTS if f"{part}.safetensors" in gatherer.missing])
    for index, single in (SAFETENSORS, PICKLES):
        shards = shards_of(gatherer.folder / index) if index not in gatherer.missing else [single]
        gatherer.gather(shards)
        if not gatherer.missing & set(shards):
            return
    if not any(gatherer.folder.glob("*.safetensors")) and not any(gatherer.folder.glob("*.bin")):
        raise refused(
            f"{gatherer.downloader.field}: {gatherer.catalogue.address} holds neither {SAFETENSORS[1]} nor "
            f"{PICKLES[1]} nor a part of a model: name the folder that does"
        )


def gather_dataset(gatherer: Gatherer, dataset: Dataset, pictures: tuple[str, ...]) -> None:
    """Fetch a dataset's own files, and then the pictures that they name.

    A picture that is not there is no error here: the data's checks tell which entries need it.

    Args:
        gatherer: of the dataset's source.
        dataset: its part of the spec.
        pictures: further ones that are needed, below its folder of pictures.

    Raises:
        StageError: SourceRefused, if a file of its own is not there; what fetching raises.
    """
    own = list_own_files(dataset)
    gatherer.gather([*own, *list_companions(dataset)])
    lacking = [name for name in own if name in gatherer.missing]
    if lacking:
        names = sorted(gatherer.catalogue.names or ())[:_NAMES_SHOWN]
        there = f"; it holds {', '.join(names)}, ..." if names else ""
        field = gatherer.downloader.field
        raise refused(
            f"{field}: {gatherer.catalogue.address} does not hold {', '.join(lacking)}{there}: correct "
            f"{field.removesuffix('.source')}.file or source"
        )
    if _unpack_pictures(gatherer, dataset):
        return
    wanted = place_pictures(dataset, [*read_picture_names(dataset, gatherer.folder), *pictures])
    gatherer.gather(wanted)
    num_missing = len(gatherer.missing.intersection(wanted))
    if not num_missing:
        return
    where = f"{gatherer.downloader.field}: {gatherer.catalogue.address}"
    hint = _hint_at_archive(gatherer, dataset)
    if hint and num_missing == len(wanted):
        raise refused(f"{where} holds none of the {num_missing} pictures that {dataset.file} names; {hint}")
    logger.warning("%s lacks %d pictures; the checks name them%s", where, num_missing, hint and f"; {hint}")


def _hint_at_archive(gatherer: Gatherer, dataset: Dataset) -> str:
    """What to set where the pictures may lie in an archive that nothing names; empty if there is none."""
    names = gatherer.catalogue.names or ()
    folders = {name.partition("/")[0] for name in names if "/" in name}
    packed = sorted(name for name in names if "/" not in name and name.endswith(".zip"))
    packed = [name for name in packed if name.removesuffix(".zip") not in folders]
    if posixpath.normpath(dataset.images) != "." or not packed:
        return ""
    images = f"{gatherer.downloader.field.removesuffix('.source')}.images"
    return f"it holds {packed[0]}: set {images} to {packed[0].removesuffix('.zip')}, and it is unpacked"


def _unpack_pictures(gatherer: Gatherer, dataset: Dataset) -> bool:
    """Whether the pictures lie in one archive beside the dataset's file; they are unpacked then.

    So LLaVA's own datasets are on the hub: a JSON file and images.zip.
    """
    packed = name_packed_pictures(dataset)
    names = gatherer.catalogue.names
    if packed is None or names is None or packed not in names:
        return False
    folder = gatherer.folder / PurePosixPath(packed).with_suffix("")
    if any((gatherer.folder / name).is_relative_to(folder) for name in names):
        return False
    remote = gatherer.catalogue.find(packed)
    assert remote is not None, "the catalogue names it"
    fetch_and_unpack(
        replace(remote, name=PurePosixPath(packed).name),
        f"{remote.address} {remote.version}",
        keep=gatherer.folder.with_name(f"{gatherer.folder.name}-archive"),
        folder=folder,
        downloader=gatherer.downloader,
        progress=gatherer.progress,
    )
    return True
