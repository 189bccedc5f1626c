"""Placeholder until helper H4's module replaces it."""

from collections.abc import Sequence
from pathlib import Path

from llava_api.run_config import RunConfig
from llava_trainer.publishing.content import Item, What


def write_companions(config: RunConfig, what: What, items: Sequence[Item], folder: Path) -> None:
    """Write card and provenance into ``folder``: the same bytes whenever it is called with the same."""


def sign(config: RunConfig, what: What, items: Sequence[Item], folder: Path, secrets: Path) -> None:
    """Write the signature of ``items`` into ``folder`` where one is asked for: the same bytes for the same."""


def processor_items(config: RunConfig) -> tuple[Item, ...]:
    """Tokenizer, processor and chat template of the merged model, with which an adapter loads by itself."""
    return ()
