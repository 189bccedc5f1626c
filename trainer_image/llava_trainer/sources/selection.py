"""Which files of a source are needed, and fetching just these.

Of a model: configuration, tokenizer, weights; nothing that is code, and no format twice. Of a dataset: its own files,
and then the images that they name.
"""

import contextlib
import json
import logging
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from llava_api.spec import Dataset
from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.formats import read_export
from llava_trainer.data.image_folder import is_link, name_kept, overlook_embedded
from llava_trainer.data.samples import Sample
from llava_trainer.data.shards import find_shards, fits, is_pattern, match_shards
from llava_trainer.data.ubiai_ocr import BOX_SUFFIX, IMAGE_SUFFIX
from llava_trainer.files import resolve_inside
from llava_trainer.sources.archive import ARCHIVE_SUFFIX, fetch_and_unpack
from llava_trainer.sources.downloads import Downloads
from llava_trainer.sources.refusals import refused

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "adapter_config.json",
)
"""What stands beside weights. Not among them: training_args.bin, a pickle of arbitrary objects."""

SAFETENSORS = ("model.safetensors.index.json", "model.safetensors")
PICKLES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
PARTS = ("adapter_model", "non_lora_trainables", "mm_projector", "projector")
"""Weights of a part of a model, each as .safetensors or .bin."""

_SHARD = re.compile(r"(?:model-\d{5}-of-\d{5}\.safetensors|pytorch_model-\d{5}-of-\d{5}\.bin)")
_NAMES_SHOWN = 5

logger = logging.getLogger(__name__)


def choose_model_files(names: Collection[str]) -> list[str]:
    """The files of a model's folder that are needed, of those that are there; safetensors where there are both.

    Args:
        names: relative to the folder. Only the folder itself is looked at: what lies deeper is another model's.
    """
    whole = {name for name in names if name in SAFETENSORS + PICKLES or _SHARD.fullmatch(name)}
    if any(name.endswith(".safetensors") for name in whole):
        whole = {name for name in whole if ".bin" not in name}
    parts = {f"{part}.safetensors" for part in PARTS} & set(names)
    parts |= {f"{part}.bin" for part in PARTS if f"{part}.safetensors" not in parts} & set(names)
    return sorted(whole | parts | (set(SMALL_FILES) & set(names)))


def is_model_file(name: str) -> bool:
    """Whether ``choose_model_files`` could choose it."""
    return bool(choose_model_files([name]))


def shards_of(index: Path) -> list[str]:
    """The files that an index of weights names; those that are no shards' names are left out.

    What is wrong with an index that cannot be read, the reading of the model tells.
    """
    try:
        places = json.loads(index.read_bytes())["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
    names = {name for name in places if isinstance(name, str)}
    return sorted(name for name in names if is_model_file(name))


def download_model(downloads: Downloads) -> None:
    """Fetch a model's files.

    Raises:
        StageError: SourceRefused, if the source holds none; what fetching raises.
    """
    names = downloads.catalogue.names
    if names is None:
        _download_by_name(downloads)
        return
    chosen = choose_model_files(names)
    if not chosen:
        raise refused(
            f"{downloads.downloader.field}: {downloads.catalogue.address} holds no file of a model (config.json, "
            "model.safetensors, ...): name the folder that does"
        )
    downloads.fetch(chosen)


def _download_by_name(downloads: Downloads) -> None:
    """Fetch a model from a server that does not tell what it has."""
    indexes = {SAFETENSORS[0], PICKLES[0]}
    downloads.fetch([*SMALL_FILES, *indexes, *(f"{part}.safetensors" for part in PARTS)])
    downloads.fetch([f"{part}.bin" for part in PARTS if f"{part}.safetensors" in downloads.missing])
    for index, single in (SAFETENSORS, PICKLES):
        shards = shards_of(downloads.folder / index) if index not in downloads.missing else [single]
        downloads.fetch(shards)
        if not downloads.missing & set(shards):
            return
    if not any(downloads.folder.glob("*.safetensors")) and not any(downloads.folder.glob("*.bin")):
        raise refused(
            f"{downloads.downloader.field}: {downloads.catalogue.address} holds neither {SAFETENSORS[1]} nor "
            f"{PICKLES[1]} nor a part of a model: name the folder that does"
        )


def list_own_files(dataset: Dataset) -> list[str]:
    """The files without which a dataset cannot be read, relative to the source."""
    names = _sample_files(dataset)
    if dataset.ubiai is not None and dataset.ubiai.documents is not None:
        names.append(dataset.ubiai.documents)
    return list(dict.fromkeys(posixpath.normpath(name) for name in names))


def list_companions(dataset: Dataset) -> list[str]:
    """The other files of an OCR archive, if the dataset should turn out to be one."""
    if dataset.format != "ubiai":
        return []
    words = (PurePosixPath(posixpath.normpath(name)) for name in _sample_files(dataset))
    return [
        str(path.with_name(f"{path.stem}{suffix}{path.suffix}"))
        for path in words
        if not path.suffix.lower().startswith(".json")
        for suffix in (BOX_SUFFIX, IMAGE_SUFFIX)
    ]


def name_packed_images(dataset: Dataset) -> str | None:
    """The archive in which the images may lie instead of their folder; None where they lie at the source's root."""
    images = posixpath.normpath(dataset.images)
    return None if images == "." else f"{images}.zip"


def may_be_needed(dataset: Dataset, name: str) -> bool:
    """Whether the dataset may need a file of the source: told before its own files have been read."""
    images = posixpath.normpath(dataset.images)
    own = (*list_own_files(dataset), *list_companions(dataset), name_packed_images(dataset))
    is_own = any(name == one or (one is not None and fits(name, one)) for one in own)
    return images == "." or name.startswith(f"{images}/") or is_own


def place_images(dataset: Dataset, images: Iterable[str]) -> list[str]:
    """Where images lie, relative to the source. Those that would leave it are left out: the data's checks tell."""
    placed = (posixpath.normpath(posixpath.join(dataset.images, image)) for image in images)
    return sorted({name for name in placed if not name.startswith(("/", "../")) and name not in (".", "..")})


def read_image_names(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Images that the dataset's own files name, relative to its folder of images."""
    return (image for image in _read_images(dataset, folder) if name_kept(image) is None)


def read_links(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Images that the dataset's own files name by http address."""
    return filter(is_link, _read_images(dataset, folder))


def _read_images(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Images of all kinds.

    What cannot be read is passed over here: the data's checks come later and tell all of it.
    """

    def resolve(wanted: str) -> Path:
        return resolve_inside(folder, folder, wanted)

    for name in _list_shards(dataset, folder):
        items = read_export(dataset, name, resolve, overlook_embedded, ReadingPosition())
        samples = (item for item in items if isinstance(item, Sample))
        yield from (image for sample in samples for image in sample.images)


def _list_shards(dataset: Dataset, folder: Path) -> Iterator[str]:
    for pattern in _sample_files(dataset):
        with contextlib.suppress(OSError, ValueError):
            yield from find_shards(folder, pattern)


def _sample_files(dataset: Dataset) -> list[str]:
    held_out = dataset.validation.file
    return [dataset.file] if held_out is None else [dataset.file, held_out]


def download_dataset(downloads: Downloads, dataset: Dataset, images: tuple[str, ...]) -> None:
    """Fetch a dataset's own files, and then the images that they name.

    An image that is not there is no error here: the data's checks tell which entries need it.

    Args:
        downloads: of the dataset's source.
        dataset: its part of the spec.
        images: further ones that are needed, below its folder of images.

    Raises:
        StageError: SourceRefused, if a file of its own is not there; what fetching raises.
    """
    patterns = list_own_files(dataset)
    field = downloads.downloader.field
    if downloads.catalogue.names is None and (unlisted := [name for name in patterns if is_pattern(name)]):
        raise refused(
            f"{field}: {downloads.catalogue.address} does not tell which files it holds, so that {unlisted[0]} cannot "
            f"be matched: name one file in {field.removesuffix('.source')}.file, or use an archive, hf:// or s3://"
        )
    shards = {pattern: match_shards(downloads.catalogue.names or (), pattern) for pattern in patterns}
    own = [name for pattern in patterns for name in shards[pattern]]
    downloads.fetch([*own, *list_companions(dataset)])
    lacking = [name for name in own if name in downloads.missing] + [name for name in patterns if not shards[name]]
    if lacking:
        names = sorted(downloads.catalogue.names or ())[:_NAMES_SHOWN]
        there = f"; it holds {', '.join(names)}, ..." if names else ""
        raise refused(
            f"{field}: {downloads.catalogue.address} does not hold {', '.join(lacking)}{there}: correct "
            f"{field.removesuffix('.source')}.file or source"
        )
    if _unpack_images(downloads, dataset):
        return
    wanted = place_images(dataset, [*read_image_names(dataset, downloads.folder), *images])
    downloads.fetch(wanted)
    num_missing = len(downloads.missing.intersection(wanted))
    if not num_missing:
        return
    where = f"{downloads.downloader.field}: {downloads.catalogue.address}"
    hint = _hint_at_archive(downloads, dataset)
    if hint and num_missing == len(wanted):
        raise refused(f"{where} holds none of the {num_missing} pictures that {dataset.file} names; {hint}")
    logger.warning("%s lacks %d pictures; the checks name them%s", where, num_missing, hint and f"; {hint}")


def _hint_at_archive(downloads: Downloads, dataset: Dataset) -> str:
    """What to set where the images may lie in an archive that nothing names; empty if there is none."""
    names = downloads.catalogue.names or ()
    folders = {name.partition("/")[0] for name in names if "/" in name}
    packed = sorted(name for name in names if "/" not in name and name.endswith(".zip"))
    packed = [name for name in packed if name.removesuffix(".zip") not in folders]
    if posixpath.normpath(dataset.images) != "." or not packed:
        return ""
    images = f"{downloads.downloader.field.removesuffix('.source')}.images"
    return f"it holds {packed[0]}: set {images} to {packed[0].removesuffix('.zip')}, and it is unpacked"


def _unpack_images(downloads: Downloads, dataset: Dataset) -> bool:
    """Whether the images lie in one archive beside the dataset's file; they are unpacked then.

    So LLaVA's own datasets are on the hub: a JSON file and images.zip.
    """
    packed = name_packed_images(dataset)
    names = downloads.catalogue.names
    if packed is None or names is None or packed not in names:
        return False
    folder = downloads.folder / PurePosixPath(packed).with_suffix("")
    if any((downloads.folder / name).is_relative_to(folder) for name in names):
        return False
    remote = downloads.catalogue.find(packed)
    assert remote is not None, "the catalogue names it"
    fetch_and_unpack(
        replace(remote, name=PurePosixPath(packed).name),
        f"{remote.address} {remote.version}",
        keep=downloads.folder.with_name(f"{downloads.folder.name}{ARCHIVE_SUFFIX}"),
        folder=folder,
        downloader=downloads.downloader,
    )
    return True
