r"""LLaVA's v1 conversation as text: what is said, and which characters of it are learned.

Layout: ``{system} USER: {question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: {answer}</s>`` - a space before
the first USER, none after ``</s>``, and ``<image>\n`` at the beginning of the question that shows the picture. Knows
nothing about tokens.

Source: conversation.py (conv_vicuna_v1) and train.py (preprocess_v1) of haotian-liu/LLaVA.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_trainer.data.samples import Sample, Turn

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE_MARKER = "<image>"
END_OF_ANSWER = "</s>"

CHAT_TEMPLATE = (
    "{%- if messages and messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}"
    f'{{%- set system = "{SYSTEM}" -%}}{{%- set turns = messages -%}}'
    "{%- endif -%}"
    "{%- macro text_of(content) -%}"
    "{%- if content is string -%}{{- content -}}"
    "{%- else -%}{%- for part in content if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{{- text_of(system) + ' ' -}}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'user' -%}"
    "{{- 'USER: ' -}}"
    "{%- if turn['content'] is not string -%}"
    "{%- for part in turn['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}"
    "{%- endif -%}"
    "{{- text_of(turn['content']) | trim + ' ' -}}"
    "{%- elif turn['role'] == 'assistant' -%}"
    "{{- 'ASSISTANT: ' + text_of(turn['content']) | trim + '</s>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)
"""The same layout for ``apply_chat_template``; a system message of the caller's replaces the default text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A conversation as text.

    Attributes:
        text: everything, with one ``<image>`` where the picture stands.
        supervised: half-open character ranges that are learned, one an answer: from the end of ``ASSISTANT:``
            (generation starts there, so the space belongs to the answer) to the end of ``</s>``.
    """

    text: str
    supervised: tuple[tuple[int, int], ...]


def render(sample: Sample) -> Conversation:
    """Lay a sample out for training."""
    text = SYSTEM + " "
    supervised = []
    for index, turn in enumerate(sample.turns):
        if turn.role == "user":
            text += _question(turn.text, shows_image=bool(sample.images) and index == sample.image_turn)
        else:
            begin = len(text)
            text += f" {turn.text}{END_OF_ANSWER}"
            supervised.append((begin, len(text)))
    return Conversation(text=text, supervised=tuple(supervised))


def render_prompt(turns: Sequence[Turn], image_turn: int | None) -> str:
    """Lay out what a model answers to: turns that end with a question.

    Args:
        turns: beginning and ending with the user.
        image_turn: index of the turn that shows the picture; None without a picture.
    """
    parts = [SYSTEM, " "]
    for index, turn in enumerate(turns):
        if turn.role == "user":
            parts.append(_question(turn.text, shows_image=index == image_turn))
        else:
            parts.append(f" {turn.text}{END_OF_ANSWER}")
    return "".join(parts)


def _question(text: str, *, shows_image: bool) -> str:
    marker = f"{IMAGE_MARKER}\n" if shows_image else ""
    return f"USER: {marker}{text} ASSISTANT:"
