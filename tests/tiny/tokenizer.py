"""A Llama-like tokenizer of 512 entries, trained on the spot.

It is built the way the hub's LLaVA v1.5 checkpoints carry theirs (``tokenizer.json`` of transformers 4.x): BPE with
byte fallback, a leading ``▁`` by the normaliser, ``<image>`` and ``<pad>`` added behind the vocabulary.
"""

import json
from collections.abc import Iterable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaTokenizer

VOCABULARY_SIZE = 512
_SPECIAL = ("<unk>", "<s>", "</s>")
_ADDED = ("<image>", "<pad>")
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))


def build_tokenizer(texts: Iterable[str]) -> LlamaTokenizer:
    """Train on ``texts``; the result has exactly VOCABULARY_SIZE entries, ``<image>`` and ``<pad>`` the last two."""
    size = VOCABULARY_SIZE - len(_SPECIAL) - len(_BYTES) - len(_ADDED)
    pieces, merges = _train_pieces(texts, size)
    entries = (*_SPECIAL, *_BYTES, *pieces)
    vocabulary = {piece: index for index, piece in enumerate(entries)}
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL + _ADDED])
    return LlamaTokenizer(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
    )


def _train_pieces(texts: Iterable[str], size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges of a BPE with ``size`` entries that merges inside words only."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    if len(model["vocab"]) != size:
        raise ValueError(f"the texts give {len(model['vocab'])} pieces, {size} are needed: pass more varied texts")
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return pieces, [(left, right) for left, right in model["merges"]]
