r"""LLaVA's conversations as text: what is said, and which characters of it are learned.

v1: ``{system} USER: {question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: {answer}</s>`` - a space before the
first USER, none after ``</s>``, and an ``<image>\n`` at the beginning of the question for each image that it shows.
Where nothing is said, only ``USER:`` or ``ASSISTANT:`` stands, without ``</s>`` and with nothing to learn.

plain (phase 1): ``<image>{caption}\n``. The question is not read at all.

LLaVA tokenises the texts around images one by one, so that each begins with the space that a tokenizer puts before
a text. Where a tokenizer does that only once, the space has to be written: ``gap`` is what stands behind every
``<image>``, and ``data.processor`` finds out whether it is needed.

Knows nothing about tokens. Source: conversation.py (conv_vicuna_v1, conv_llava_plain) and train.py
(preprocess_multimodal, preprocess_v1, preprocess_plain) of haotian-liu/LLaVA.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llava_trainer.data.samples import Sample, Turn

Template = Literal["v1", "plain"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE_MARKER = "<image>"
END_OF_ANSWER = "</s>"

_CHAT_TEMPLATE = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}"
    f'{{%- set system = "{SYSTEM}" -%}}{{%- set turns = messages -%}}'
    "{%- endif -%}"
    "{%- macro text_of(content) -%}"
    "{%- if content is string -%}{{- content -}}"
    "{%- else -%}{%- for part in content if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{%- macro pictures_of(content) -%}"
    "{%- if content is not string -%}"
    "{%- for part in content if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
    "{{- bos_token + 'GAP' if bos_token else '' -}}"
    "{{- text_of(system) | trim + ' ' -}}"
    "{%- for turn in turns -%}"
    "{%- set said = (pictures_of(turn['content']) + text_of(turn['content']) | trim) | trim -%}"
    "{%- set said = said | replace('<image>', '<image>GAP') -%}"
    "{%- if turn['role'] == 'user' -%}"
    "{{- 'USER: ' + said + ' ' if said else 'USER:' -}}"
    "{%- elif turn['role'] == 'assistant' -%}"
    "{{- 'ASSISTANT: ' + said + '</s>' if said else 'ASSISTANT:' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)


def chat_template(gap: str) -> str:
    """The v1 layout for ``apply_chat_template``; a system message of the caller's replaces the default text.

    It begins with the tokenizer's own first token where it has one, as training does: servers (vLLM among them) add
    none to a chat, and transformers' processors add none to a text that begins with it.

    Args:
        gap: stands behind every ``<image>``, and behind the first token for the same reason.
    """
    return _CHAT_TEMPLATE.replace("GAP", gap)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A conversation as text.

    Attributes:
        text: everything, with one ``<image>`` where each image stands.
        supervised: half-open character ranges that are learned, one an answer: from the end of ``ASSISTANT:``
            (generation starts there, so the space belongs to the answer) to the end of ``</s>``; a caption with its
            line break in the plain layout.
    """

    text: str
    supervised: tuple[tuple[int, int], ...]


class TemplateError(ValueError):
    """A sample that the layout has no place for; the message says why."""


def render(sample: Sample, template: Template = "v1", gap: str = "") -> Conversation:
    """Lay a sample out for training.

    Args:
        sample: what to lay out.
        template: which layout.
        gap: stands behind every ``<image>``.

    Raises:
        TemplateError: ``plain`` is asked for and the sample is not one image with one caption.
    """
    if template == "plain":
        return _render_caption(sample, gap)
    text = (sample.system or SYSTEM) + " "
    supervised = []
    for index, turn in enumerate(sample.turns):
        begin = len(text)
        text += _say(turn, sample.image_turns.count(index), gap)
        if turn.role == "assistant" and turn.text:
            supervised.append((begin, len(text)))
    return Conversation(text=text, supervised=tuple(supervised))


def render_prompt(turns: Sequence[Turn], image_turns: Sequence[int], gap: str = "", *, system: str = "") -> str:
    """Lay out what a model answers to: turns that end with a question.

    Args:
        turns: beginning and ending with the user.
        image_turns: for each image, the index of the turn that shows it.
        gap: stands behind every ``<image>``.
        system: replaces LLaVA's system text; empty where that stays.
    """
    said = (_say(turn, image_turns.count(index), gap) for index, turn in enumerate(turns))
    return "".join((system or SYSTEM, " ", *said))


def _render_caption(sample: Sample, gap: str) -> Conversation:
    if len(sample.images) != 1 or len(sample.turns) != 2:
        raise TemplateError(
            f"has {len(sample.images)} pictures and {len(sample.turns)} turns: alignment learns from one picture with "
            "one caption"
        )
    # An empty gap or not: the space before the caption is learned, since LLaVA masks the image alone.
    text = f"{IMAGE_MARKER}{gap}{sample.turns[1].text}\n"
    return Conversation(text=text, supervised=((len(IMAGE_MARKER), len(text)),))


def _say(turn: Turn, num_images: int, gap: str) -> str:
    if turn.role == "assistant":
        return f" {turn.text}{END_OF_ANSWER}" if turn.text else ""
    said = (f"{IMAGE_MARKER}\n" * num_images + turn.text).strip().replace(IMAGE_MARKER, IMAGE_MARKER + gap)
    return f"USER: {said} ASSISTANT:" if said else "USER:ASSISTANT:"
