"""What has been said so far, as a value, and how a model is fed with it."""

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llava_api.spec import DataLimits
from llava_api.text import show
from llava_trainer.chat.errors import ChatError
from llava_trainer.data.encode import encode_prompt
from llava_trainer.data.images import ImageError, check_image, open_image, pixel_values
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Turn
from llava_trainer.data.template import IMAGE_MARKER
from llava_trainer.model.answering import EncodedPrompt

_PLACEHOLDERS = re.compile(rf"{IMAGE_MARKER}|<image-placeholder>")
"""What LLaVA's own code lets stand for a picture; pictures are shown where training shows them, before the question."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns, ending with the user's where an answer is waited for."""

    turns: tuple[Turn, ...] = ()
    images: tuple[Path, ...] = ()
    image_turns: tuple[int, ...] = ()
    """For each image, the index of the turn that shows it."""
    system: str = ""

    def ask(self, question: str, images: Sequence[Path] = ()) -> "Conversation":
        """With a question more, which shows ``images``.

        Raises:
            ChatError: nothing is asked.
        """
        asked = _PLACEHOLDERS.sub("", question).strip()
        if not asked:
            raise ChatError("the question is empty: ask something")
        return replace(
            self,
            turns=(*self.turns, Turn(role="user", text=asked)),
            images=(*self.images, *images),
            image_turns=(*self.image_turns, *([len(self.turns)] * len(images))),
        )

    def answer(self, text: str) -> "Conversation":
        """With the answer."""
        return replace(self, turns=(*self.turns, Turn(role="assistant", text=text)))


def check_picture(path: Path) -> None:
    """Make sure that a file can be shown to a model.

    Raises:
        ChatError: it is missing, no picture, damaged, or larger than datasets may hold by default.
    """
    name = show(path)
    if re.match("https?:/", str(path), re.IGNORECASE):
        raise ChatError(f"picture {name} is an address: download it, and give the file")
    try:
        # Opening a pipe would wait for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ChatError(f"picture {name} is no file")
        check_image(path, DataLimits().image_pixels)
    except FileNotFoundError as error:
        raise ChatError(f"picture {name} does not exist") from error
    except ImageError as error:
        raise ChatError(f"picture {name} {error}") from error
    except OSError as error:
        raise ChatError(f"picture {name} cannot be read: {error.strerror}") from error


def encode(conversation: Conversation, processor: Processor, *, max_new_tokens: int, context: int) -> EncodedPrompt:
    """The conversation as a model is fed with it.

    Args:
        conversation: ends with a question.
        processor: the model's.
        max_new_tokens: room for the answer.
        context: most tokens that the model can tell apart by place.

    Raises:
        ChatError: it is too long, or holds a special token in what was typed.
    """
    asked = conversation.turns[-1].text
    for token in sorted(processor.tokenizer.all_special_tokens):
        if token in asked:
            raise ChatError(f"the question holds the special token {token}, which ends or fills up texts: leave it out")
    ids = encode_prompt(conversation.turns, conversation.image_turns, processor, system=conversation.system)
    if len(ids) + max_new_tokens > context:
        raise ChatError(
            f"the conversation has {len(ids):,} tokens, and with {max_new_tokens:,} of an answer (--max-new-tokens) "
            f"that is more than the {context:,} of the model: ask less, show fewer pictures (each has "
            f"{processor.tokens_per_image:,}), or lower --max-new-tokens"
        )
    if not conversation.images:
        return EncodedPrompt(ids=ids, load_pixels=None)
    images = conversation.images
    return EncodedPrompt(
        ids=ids,
        images=images,
        load_pixels=lambda: torch.stack(
            [torch.from_numpy(pixel_values(open_image(path), processor)) for path in images]
        ),
    )
