"""The tokenizer of an imported model: the checkpoint's own vocabulary, with ``<image>`` and a pad token."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings, refusing
from llava_trainer.data.template import END_OF_ANSWER, IMAGE_MARKER
from llava_trainer.errors import StageError
from llava_trainer.importing.vocabulary import convert_vocabulary, read_pieces

VOCABULARY = "tokenizer.model"
_FAST = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_SPECIAL_MAP = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_PAD = "<pad>"
_MAX_LENGTH = 2048
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class ImportedTokenizer:
    """A tokenizer ready to be written."""

    backend: Tokenizer
    settings: dict[str, Any]
    """tokenizer_config.json."""

    @property
    def size(self) -> int:
        """Ids in use: one more than the largest."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def image_token_id(self) -> int:
        """Id of ``<image>``."""
        return self._id_of(IMAGE_MARKER)

    @property
    def pad_token_id(self) -> int:
        """Id of the pad token."""
        return self._id_of(self.settings["pad_token"])

    def write(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        self.backend.save(str(folder / _FAST))
        (folder / _SETTINGS).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")

    def _id_of(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        assert found is not None, token
        return found


def import_tokenizer(folders: tuple[Path, ...]) -> ImportedTokenizer:
    """Take the tokenizer of the first folder that has one.

    The checkpoint's own pad token stays; where it names none, ``<pad>`` is added as the hub's converter does.

    Raises:
        StageError: InvalidModel; there is none, it is damaged, or it cannot be converted without changing ids.
    """
    for folder in folders:
        if (folder / VOCABULARY).is_file():
            return _from_sentencepiece(folder)
        if (folder / _FAST).is_file():
            return _from_fast(folder)
    raise _invalid(f"none of {', '.join(map(str, folders))} holds {VOCABULARY} or {_FAST}: fetch the whole checkpoint")


def _from_sentencepiece(folder: Path) -> ImportedTokenizer:
    settings = _optional(folder / _SETTINGS)
    pad = _pad_token(folder, settings) or _PAD
    # What LLaVA's transformers takes where nothing is said.
    legacy = True if settings.get("legacy") is None else bool(settings["legacy"])
    path = folder / VOCABULARY
    known = read_pieces(path)
    given = _optional(folder / _ADDED)
    if wrong := [token for token, number in given.items() if type(number) is not int]:
        raise _invalid(f"{folder / _ADDED}: the id of {wrong[0]!r:.60} is {given[wrong[0]]!r:.60}, not a whole number")
    added = sorted((token for token in given if token not in known), key=lambda token: given[token])
    if [given[token] for token in added] != list(range(len(known), len(known) + len(added))):
        raise _invalid(
            f"{folder / _ADDED}: the ids of {', '.join(added[:_NAMED])} must follow the vocabulary's, which end at "
            f"{len(known) - 1}"
        )
    missing = [token for token in dict.fromkeys((IMAGE_MARKER, pad)) if token not in known and token not in added]
    backend = convert_vocabulary(path, [*added, *missing], legacy=legacy)
    return ImportedTokenizer(backend=backend, settings=_describe(settings, pad, legacy=legacy))


def _from_fast(folder: Path) -> ImportedTokenizer:
    path = folder / _FAST
    read_settings(path)
    with refusing(path):
        backend = Tokenizer.from_file(str(path))
        backend.encode(IMAGE_MARKER)
    settings = _optional(folder / _SETTINGS)
    pad = _pad_token(folder, settings) or _PAD
    missing = [token for token in (IMAGE_MARKER, pad) if backend.token_to_id(token) is None]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    return ImportedTokenizer(backend=backend, settings=_describe(settings, pad, legacy=settings.get("legacy")))


def _describe(settings: dict[str, Any], pad: str, *, legacy: bool | None) -> dict[str, Any]:
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": _text(settings.get("bos_token")) or "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": _text(settings.get("eos_token")) or END_OF_ANSWER,
        "extra_special_tokens": {"image_token": IMAGE_MARKER},
        "legacy": legacy,
        "model_max_length": _max_length(settings),
        "pad_token": pad,
        "padding_side": "left",
        # Llama's own class would build the tokenizer anew from its vocabulary; this one takes tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": _text(settings.get("unk_token")) or "<unk>",
    }


def _max_length(settings: dict[str, Any]) -> int:
    found = settings.get("model_max_length")
    return found if isinstance(found, int) and 0 < found < 10**9 else _MAX_LENGTH


def _pad_token(folder: Path, settings: dict[str, Any]) -> str | None:
    return _text(settings.get("pad_token")) or _text(_optional(folder / _SPECIAL_MAP).get("pad_token"))


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _optional(path: Path) -> dict[str, Any]:
    return read_settings(path) if path.is_file() else {}


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
