"""What is published beside a model's own files: its card, where it comes from, and a signature of all of it.

The same bytes whenever they are made, so that publishing again finds them where they are.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from llava_api.constants import SecretRole
from llava_api.run_config import RunConfig
from llava_trainer.data.processor import PROCESSOR_FILES
from llava_trainer.files import sha256_file, write_whole
from llava_trainer.merging.manifest import MANIFEST, Manifest
from llava_trainer.publishing.card import build_card, read_known
from llava_trainer.publishing.content import SIGNATURE, Item, What
from llava_trainer.publishing.provenance import build_provenance
from llava_trainer.publishing.refusals import damaged
from llava_trainer.publishing.signing import build_signature, read_signing_key

CARD = "README.md"
PROVENANCE = "provenance.intoto.jsonl"


def select_processor(merged: Sequence[Item]) -> tuple[Item, ...]:
    """Tokenizer, image processor and chat template out of a merged model: with them an adapter loads by itself."""
    return tuple(item for item in merged if item.name in PROCESSOR_FILES)


def write_companions(config: RunConfig, what: What, items: Sequence[Item], folder: Path) -> None:
    """Write card and provenance of a content.

    Args:
        config: of the publish stage.
        what: is published.
        items: the model's own files.
        folder: gets them; there, and empty.

    Raises:
        StageError: ResultDamaged; what an earlier stage has written down cannot be read.
        OSError: the volume cannot be read or written.
    """
    volume = config.volume
    try:
        merged = Manifest.model_validate_json((volume.merged_dir / MANIFEST).read_bytes())
        known = read_known(config, merged)
    except (FileNotFoundError, ValidationError) as error:
        raise damaged(
            f"what the run has written down for its model card cannot be read ({MANIFEST} in {volume.merged_dir}, "
            f"{volume.metrics_file}, {volume.dataset_report_json}): look at the run's volume: {error}"
        ) from error
    write_whole(folder / CARD, build_card(known, what))
    card = Item(
        name=CARD,
        path=folder / CARD,
        size=(folder / CARD).stat().st_size,
        sha256=sha256_file(folder / CARD).removeprefix("sha256:"),
    )
    write_whole(folder / PROVENANCE, build_provenance(config, [*items, card], merged))


def sign(config: RunConfig, what: What, items: Sequence[Item], folder: Path, secrets: Path) -> None:
    """Write the signature of ``items``, everything else that is published, where ``spec.publish.signing`` asks for one.

    Args:
        config: of the publish stage.
        what: is published.
        items: is signed.
        folder: gets it.
        secrets: where Secrets are mounted.

    Raises:
        StageError: DestinationRefused; the key cannot sign.
        OSError: the volume cannot be written.
    """
    if config.publish is None or config.publish.signing is None:
        return
    key = read_signing_key(secrets / SecretRole.SIGNING)
    name = config.run.name if what == "merged" else f"{config.run.name}-{what}"
    write_whole(folder / SIGNATURE, build_signature(items, key, name=name, signature_file=SIGNATURE))
