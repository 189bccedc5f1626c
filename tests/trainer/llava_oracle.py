"""What LLaVA's own code does with a conversation, written anew from its description: the oracle of encoding.

Tokens come from the sentencepiece package, text by text between images (mm_utils.py, tokenizer_image_token), the way
transformers 4.37's slow Llama tokenizer calls it for both values of ``legacy``. The mask follows the rounds of train.py
(preprocess_v1). Source: haotian-liu/LLaVA at c121f04. Nothing of the trainer is used.
"""

from dataclasses import dataclass
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IGNORE, IMAGE = -100, -200
END, UNKNOWN, BOS_ID = "</s>", "<unk>", 1


class SlowLlamaTokenizer:
    """``LlamaTokenizer`` of transformers 4.37, not the fast one."""

    def __init__(self, model: bytes, *, legacy: bool) -> None:
        proto: Any = vars(sentencepiece_model_pb2)["ModelProto"]()
        proto.ParseFromString(model)
        if not legacy:
            proto.normalizer_spec.add_dummy_prefix = False
        self.legacy = legacy
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._end = self._pieces.piece_to_id(END)

    def __call__(self, text: str) -> list[int]:
        ids = [BOS_ID]
        if not self.legacy and text:
            text = "▁" + text.replace("▁", " ")
        for number, segment in enumerate(text.split(END)):
            ids += [self._end] * (number > 0)
            ids += self._segment(segment) if segment else []
        return ids

    def _segment(self, text: str) -> list[int]:
        if self.legacy or not text.startswith(("▁", " ")):
            return list(self._pieces.encode(text))
        return list(self._pieces.encode(UNKNOWN + text))[len(self._pieces.encode(UNKNOWN)) :]


def image_token(prompt: str, tokenizer: SlowLlamaTokenizer) -> list[int]:
    """Ids of a prompt with IMAGE where an image stands."""
    first, *others = [tokenizer(chunk) for chunk in prompt.split("<image>")]
    ids = list(first)
    for chunk in others:
        ids += [IMAGE, *chunk[1:]]
    return ids


@dataclass(frozen=True)
class Expected:
    """Ids and labels, an image being one IMAGE."""

    ids: list[int]
    labels: list[int]
    llava_gives_up: bool
    """LLaVA's own counting goes wrong here: it masks the whole sample, or learns a word of the template."""


def layout(turns: list[tuple[str, str]]) -> str:
    """The v1 prompt of (speaker, value) turns; images are moved to the beginning of their turn.

    LLaVA keeps one image a turn and loses the others; here all are kept, in their order.
    """
    prompt = SYSTEM + " "
    for speaker, value in turns:
        count = value.count("<image>")
        if count:
            value = ("<image>\n" * count + value.replace("<image>", "").strip()).strip()
        role, separator = ("USER", " ") if speaker == "human" else ("ASSISTANT", END)
        prompt += f"{role}: {value}{separator}" if value else f"{role}:"
    return prompt


def encode_v1(turns: list[tuple[str, str]], tokenizer: SlowLlamaTokenizer) -> Expected:
    """preprocess_v1, and the mask that it is meant to give where it gives up."""
    prompt = layout(turns)
    ids = image_token(prompt, tokenizer)
    # The template's own word in a question is taken for the end of the question, so that the real "ASSISTANT:" would
    # be learned, too; and after an empty question no end is found.
    misled = any(speaker == "human" and (not value or "ASSISTANT:" in value) for speaker, value in turns)
    counted = None if misled else _mask_by_rounds(prompt, ids, tokenizer)
    return Expected(ids, counted or _mask_by_prefixes(turns, ids, tokenizer), llava_gives_up=counted is None)


def encode_plain(caption: str, tokenizer: SlowLlamaTokenizer) -> Expected:
    """preprocess_plain: only what ``<image>`` alone tokenises to is masked."""
    ids = image_token(f"<image>{caption}\n", tokenizer)
    masked = len(image_token("<image>", tokenizer))
    return Expected(ids, [IGNORE] * masked + ids[masked:], llava_gives_up=False)


def _mask_by_rounds(prompt: str, ids: list[int], tokenizer: SlowLlamaTokenizer) -> list[int] | None:
    """Fixed offsets by round, as LLaVA counts; None where the counts do not add up."""
    labels = list(ids)
    at = 1
    labels[:at] = [IGNORE]
    for number, said in enumerate(prompt.split(END)):
        if not said:
            break
        parts = said.split(" ASSISTANT: ")
        if len(parts) != 2:
            break
        later = int(number > 0 and not tokenizer.legacy)
        round_length = len(image_token(said, tokenizer)) - later
        asked = len(image_token(parts[0] + " ASSISTANT: ", tokenizer)) - 2 - later
        labels[at : at + asked] = [IGNORE] * asked
        at += round_length
    labels[at:] = [IGNORE] * (len(labels) - at)
    return labels if at == len(ids) else None


def _mask_by_prefixes(turns: list[tuple[str, str]], ids: list[int], tokenizer: SlowLlamaTokenizer) -> list[int]:
    """Learned is what an answer adds to the ids of everything before it."""
    labels = [IGNORE] * len(ids)
    for number, (speaker, value) in enumerate(turns):
        if speaker == "gpt" and value:
            before = layout([*turns[:number], ("gpt", "")])
            begin, end = len(image_token(before, tokenizer)), len(image_token(layout(turns[: number + 1]), tokenizer))
            labels[begin:end] = ids[begin:end]
    return labels
