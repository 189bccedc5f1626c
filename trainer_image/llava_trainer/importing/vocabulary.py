"""A SentencePiece vocabulary (``tokenizer.model``) made into a ``tokenizer.json`` that gives the same ids, proven.

transformers would make one itself, but by its own defaults: whether a text after ``</s>`` begins with a ``▁`` depends
on the ``legacy`` setting of the checkpoint, which it does not keep. Here the result is compared with the sentencepiece
package, text by text, before it is used.

Facts: Llama's vocabulary is a byte-pair encoding with byte fallback, a ``▁`` put before the text, spaces kept as they
are, no normalisation.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llava_api.failures import Reason
from llava_trainer.data.template import SYSTEM
from llava_trainer.errors import StageError

Proto = Any
"""A ``ModelProto``: a class that protobuf makes when it is imported, which no type checker sees."""

MAX_VOCABULARY_BYTES = 64 * 2**20
"""Llama's has half a megabyte, one of 256,000 pieces about 5. Parsed, it takes many times as much memory."""
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_BEGIN, _END = "<s>", "</s>"
_SPACE = "▁"

PROBES = (
    SYSTEM,
    f"{SYSTEM} USER: What is the total? ASSISTANT: 1,234.50 €",
    "USER:  two  spaces   and\ttabs\r\nand lines\n\nand one more ",
    " leading and trailing ",
    "\n\nWhat does it say?",
    "",
    " ",
    "Größe, naïve, 漢字かな交じり文, العربية, हिन्दी, עברית, ไทย",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 \u00a0\u200b\u3000 \ufeff \U0010ffff",
    "x = [i ** 2 for i in range(10)]  # comment\n\tif x != y: return {'a': 1}",
    "aaaaaaaaaaaaaaaabababababab    ________ ------- 0000000000000123456789",
    "▁already▁marked ▁▁",
    "don't can't I'm it's THE CAPITALS CamelCase snake_case http://a.b/c?d=e&f=g",
    "ASSISTANT: USER: <unk",
)
"""Texts that both must cut alike: the template's own words, scripts, bytes, spaces, repetitions."""


def read_pieces(path: Path) -> set[str]:
    """Texts of the vocabulary in ``path``.

    Raises:
        StageError: InvalidModel; the file is damaged or is no vocabulary like Llama's.
    """
    return {piece.piece for piece in _parse(path).pieces}


def convert_vocabulary(path: Path, added: Iterable[str], *, legacy: bool) -> Tokenizer:
    """Make a fast tokenizer of the SentencePiece model in ``path``.

    Args:
        path: ``tokenizer.model``.
        added: special tokens behind the vocabulary, in the order of their ids.
        legacy: whether a ``▁`` is put before every text between special tokens, or only before the first.

    Raises:
        StageError: InvalidModel; the file is damaged, is no vocabulary like Llama's, or the ids differ.
    """
    proto = _parse(path)
    reference = SentencePieceProcessor(model_proto=proto.SerializeToString())
    # Written to text and read again: what is proven is what the file will give.
    tokenizer = Tokenizer.from_str(_build(proto, tuple(added), legacy=legacy).to_str())
    _prove(tokenizer, reference, path, legacy=legacy)
    return tokenizer


def _build(proto: Proto, added: tuple[str, ...], *, legacy: bool) -> Tokenizer:
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    unknown = proto.trainer_spec.unk_piece
    backend = Tokenizer(
        models.BPE(
            vocab=pieces, merges=list(_merges(proto)), unk_token=unknown, fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", pair=f"{_BEGIN} $A {_BEGIN} $B", special_tokens=[(_BEGIN, pieces[_BEGIN])]
    )
    special = [piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*special, *added)])
    return backend


def _merges(proto: Proto) -> Iterator[tuple[str, str]]:
    """Pairs in the order in which they are merged: the piece with the highest score first."""
    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    for piece in sorted(normal, key=lambda text: -normal[text]):
        for cut in range(1, len(piece)):
            if piece[:cut] in normal and piece[cut:] in normal:
                yield piece[:cut], piece[cut:]


def _check_kind(proto: Proto, path: Path) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    types = {piece.type for piece in proto.pieces}
    names = {piece.piece for piece in proto.pieces}
    problems = (
        (trainer.model_type != _BPE, "is no byte-pair encoding"),
        (not trainer.byte_fallback, "has no byte fallback"),
        (bool(normalizer.precompiled_charsmap), f"normalises texts ({normalizer.name})"),
        (normalizer.remove_extra_whitespaces, "drops spaces"),
        (not normalizer.add_dummy_prefix, "puts no space before a text"),
        (not types <= {_NORMAL, _UNKNOWN, _CONTROL, _BYTE}, "holds symbols that its user defined"),
        (not {_BEGIN, _END} <= names, f"lacks {_BEGIN} or {_END}"),
    )
    for wrong, what in problems:
        if wrong:
            raise _invalid(f"{path} {what}: it is not a vocabulary like Llama's")


def _prove(tokenizer: Tokenizer, reference: SentencePieceProcessor, path: Path, *, legacy: bool) -> None:
    for text in PROBES:
        expected = reference.encode(text) if text else []
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if not legacy and text.startswith((" ", _SPACE)):
            # Without the legacy behaviour no second ▁ is put before a space. No LLaVA prompt begins with one.
            continue
        if found != expected:
            raise _invalid(f"{path}: converted to tokenizer.json, {text!r:.60} has ids {found}, not {expected}")
    end = tokenizer.token_to_id(_END)
    for text in filter(str.strip, PROBES):
        expected = _after_end(text, reference, legacy=legacy)
        found = tokenizer.encode(f"{_END}{text}", add_special_tokens=False).ids
        if found != [end, *expected]:
            raise _invalid(f"{path}: converted to tokenizer.json, {_END + text!r:.60} has ids {found}, not {expected}")


def _after_end(text: str, reference: SentencePieceProcessor, *, legacy: bool) -> list[int]:
    """Ids of a text in the middle: with a ``▁`` before it, or as if it went on after a line break."""
    if legacy:
        ids: list[int] = reference.encode(text)
        return ids
    lead: list[int] = reference.encode("\n")
    whole: list[int] = reference.encode(f"\n{text}")
    return whole[len(lead) :]


def _parse(path: Path) -> Proto:
    proto: Proto = vars(sentencepiece_model_pb2)["ModelProto"]()
    try:
        if (size := path.stat().st_size) > MAX_VOCABULARY_BYTES:
            raise _invalid(
                f"{path} has {size:,} bytes, more than the {MAX_VOCABULARY_BYTES:,} that are read: put the model's own "
                "vocabulary there"
            )
        proto.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise _invalid(f"{path} is no SentencePiece model: {error}") from error
    _check_kind(proto, path)
    return proto


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
