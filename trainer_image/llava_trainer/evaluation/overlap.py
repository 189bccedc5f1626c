"""How much of an answer is that of a reference: by letters (ANLS), by words (token F1) and by their order (ROUGE-L).

Pure functions of two strings, from 0 to 1.
"""

import unicodedata
from collections import Counter

from rapidfuzz.distance import LCSseq, Levenshtein

_ANLS_THRESHOLD = 0.5
_ARTICLES = frozenset({"a", "an", "the"})
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),  # Han
)  # fmt: skip
"""Letters of scripts that write no spaces between words: each is a word of its own, with the marks on it."""


def anls(answer: str, reference: str) -> float:
    """Average normalised Levenshtein similarity of one pair, capitals and runs of white space left out.

    1 - NL, where NL is the edit distance by the longer one's length, and 0 from NL 0.5 on: A. F. Biten et al., "Scene
    Text Visual Question Answering", ICCV 2019, https://arxiv.org/abs/1905.13648.
    """
    left, right = (" ".join(text.lower().split()) for text in (answer, reference))
    distance = Levenshtein.normalized_distance(left, right)
    return 1.0 - distance if distance < _ANLS_THRESHOLD else 0.0


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, without articles, capitals and marks.

    P. Rajpurkar et al., "SQuAD", EMNLP 2016, https://arxiv.org/abs/1606.05250. Marks are those of Unicode, not only of
    ASCII. Where either side has no words, 1 if neither has, else 0.
    """
    left, right = (Counter(_squad_words(text)) for text in (answer, reference))
    if not left or not right:
        return float(left == right)
    return 2.0 * (left & right).total() / (left.total() + right.total())


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words.

    C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL 2004, with precision and recall weighted
    alike. Words are those of any script (``split_words``), and nothing is stemmed. Without words as ``token_f1``.
    """
    left, right = split_words(answer), split_words(reference)
    if not left or not right:
        return float(left == right)
    return 2.0 * LCSseq.similarity(left, right) / (len(left) + len(right))


def split_words(text: str) -> list[str]:
    """Words of a text in any script, case folded: runs of letters, digits and the marks on them.

    Where a script has no spaces between words, every letter is one.
    """
    words: list[str] = []
    is_open = False
    for char in unicodedata.normalize("NFKC", text).casefold():
        kind = unicodedata.category(char)[0]
        if kind == "M" and words and is_open:
            words[-1] += char
        elif kind not in "LMN":
            is_open = False
        elif is_open and not _is_unspaced(char) and not _is_unspaced(words[-1][0]):
            words[-1] += char
        else:
            words.append(char)
            is_open = True
    return words


def _is_unspaced(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _UNSPACED)


def _squad_words(text: str) -> list[str]:
    plain = "".join(char for char in text.lower() if not _is_mark(char))
    return [word for word in plain.split() if word not in _ARTICLES]


def _is_mark(char: str) -> bool:
    # ASCII's symbols ($ + < = > ^ ` | ~) are marks for SQuAD.
    return unicodedata.category(char)[0] == "P" or (char.isascii() and unicodedata.category(char)[0] == "S")
