"""What is published beside a model's own files: its card, where it comes from, and a signature of all of it.

The same bytes whenever they are made, so that publishing again finds them where they are.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from llava_api.constants import SecretRole
from llava_api.run_config import RunConfig
from llava_trainer.data.model_config import read_settings
from llava_trainer.data.processor import PROCESSOR_FILES, TOKENIZER_CONFIG
from llava_trainer.files import sha256_file, write_whole
from llava_trainer.merging.manifest import MANIFEST, Manifest
from llava_trainer.publishing.card import build_card, read_known
from llava_trainer.publishing.content import SIGNATURE, Item, What
from llava_trainer.publishing.provenance import build_provenance
from llava_trainer.publishing.refusals import damaged
from llava_trainer.publishing.signing import build_signature, read_signing_key

CARD = "README.md"
PROVENANCE = "provenance.intoto.jsonl"
_PLAIN_TOKENIZER = "PreTrainedTokenizerFast"
"""Has transformers, 4 and 5, take tokenizer.json as it is."""


def select_processor(merged: Sequence[Item]) -> tuple[Item, ...]:
    """Tokenizer, image processor and chat template of a merged model, with which an adapter is asked as it was trained.

    All but the tokenizer's settings, which ``write_companions`` writes.
    """
    return tuple(item for item in merged if item.name in PROCESSOR_FILES and item.name != TOKENIZER_CONFIG)


def write_companions(config: RunConfig, what: What, items: Sequence[Item], folder: Path) -> None:
    """Write card and provenance of a content, and an adapter's settings of the tokenizer.

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
    texts = {CARD: build_card(known, what)}
    if what == "adapter":
        texts[TOKENIZER_CONFIG] = describe_tokenizer(volume.merged_dir)
    made = [_write(folder / name, text) for name, text in texts.items()]
    write_whole(folder / PROVENANCE, build_provenance(config, [*items, *made], merged))


def describe_tokenizer(merged_dir: Path) -> str:
    """The merged model's tokenizer_config.json, but that it names no class.

    Beside a model's config.json that counts for nothing. Without one, transformers would make a tokenizer of the class
    that LLaVA's checkpoints name (LlamaTokenizer) out of the same vocabulary, which cuts texts into other tokens.
    """
    settings = read_settings(merged_dir / TOKENIZER_CONFIG) | {"tokenizer_class": _PLAIN_TOKENIZER}
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def _write(path: Path, text: str) -> Item:
    write_whole(path, text)
    return Item(name=path.name, path=path, size=path.stat().st_size, sha256=sha256_file(path).removeprefix("sha256:"))


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
