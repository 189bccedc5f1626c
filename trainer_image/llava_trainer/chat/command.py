"""``llava-trainer chat``: reads questions, shows the answers as they come, exit codes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import TextStreamer
from transformers.utils import logging as transformers_logging

from llava_api import text
from llava_trainer.chat.conversation import Conversation, check_picture, encode
from llava_trainer.chat.errors import ChatError
from llava_trainer.chat.options import ChatOptions, read_options
from llava_trainer.chat.speakers import Speaker, load_speakers
from llava_trainer.data.images import ImageError

EXIT_ANSWERED = 0
EXIT_NOT_ANSWERED = 1
EXIT_INTERRUPTED = 130
_MAX_LINE = 100_000
"""Characters of a question that is read from standard input."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer; returns the exit code."""
    options = read_options(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        for picture in options.images:
            check_picture(picture)
        with load_speakers(options) as speakers:
            if options.questions:
                _ask_all(speakers, options)
            else:
                _converse(speakers, options, _read_lines())
    except ChatError as error:
        _tell(error)
        return EXIT_NOT_ANSWERED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_ANSWERED


def _tell(error: ChatError) -> None:
    sys.stderr.write(f"llava-trainer chat: {text.escape(str(error), multiline=True)}\n")


def _ask_all(speakers: Sequence[Speaker], options: ChatOptions) -> None:
    images = options.images
    for question in options.questions:
        _ask(speakers, question, images, options)
        images = ()


def _converse(speakers: Sequence[Speaker], options: ChatOptions, lines: Iterator[str]) -> None:
    """Answer line by line; what is wrong with one is told, and the next one is read."""
    images = list(options.images)
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/clear":
                images = list(options.images)
                for speaker in speakers:
                    speaker.conversation = Conversation(system=options.system)
            elif command == "/image":
                check_picture(Path(rest.strip()))
                images.append(Path(rest.strip()))
            elif command:
                _ask(speakers, line, images, options)
                images = []
        except ChatError as error:
            _tell(error)


def _read_lines() -> Iterator[str]:
    """Lines of standard input, asked for where a person types."""
    while True:
        if sys.stdin.isatty():
            sys.stdout.write("> ")
            sys.stdout.flush()
        line = sys.stdin.readline(_MAX_LINE)
        if not line:
            return
        yield line


def _ask(speakers: Sequence[Speaker], question: str, images: Sequence[Path], options: ChatOptions) -> None:
    """Let every model answer to the same question, and remember what each has said.

    Raises:
        ChatError: the question cannot be asked, or not answered by one of them; nothing is remembered of it.
    """
    asked = [speaker.conversation.ask(question, images) for speaker in speakers]
    prompts = [
        encode(
            conversation, speaker.processor, max_new_tokens=options.generation.max_new_tokens, context=speaker.context
        )
        for speaker, conversation in zip(speakers, asked, strict=True)
    ]
    answers = []
    for speaker, prompt in zip(speakers, prompts, strict=True):
        write = _Writer(f"{speaker.name}: " if len(speakers) > 1 else "")
        # Beams are only decided upon at the end.
        streamer = None if options.generation.num_beams > 1 else _Streamer(speaker, write)
        try:
            answer = speaker.answerer.answer_as_told(prompt, options.generation, streamer)
        except torch.OutOfMemoryError as error:
            write.break_off()
            raise ChatError(
                f"answering needs more memory than the GPU has: lower --max-new-tokens, show fewer pictures, or try "
                f"--load-4bit ({text.show(error, max_chars=200)})"
            ) from error
        except ImageError as error:
            write.break_off()
            raise ChatError(f"a picture has changed since it was checked: it {error}") from error
        if streamer is None:
            write(answer.text)
        write.end()
        if answer.is_cut:
            sys.stderr.write(f"(cut off after {options.generation.max_new_tokens:,} tokens: --max-new-tokens)\n")
        answers.append(answer.text)
    for speaker, conversation, said in zip(speakers, asked, answers, strict=True):
        speaker.conversation = conversation.answer(said)


class _Writer:
    """Writes one answer: what a model says is fit to show, and begins with no white space."""

    def __init__(self, label: str) -> None:
        self._has_begun = False
        sys.stdout.write(label)
        sys.stdout.flush()

    def __call__(self, piece: str) -> None:
        said = piece if self._has_begun else piece.lstrip()
        self._has_begun = self._has_begun or bool(said)
        sys.stdout.write(text.escape(said, multiline=True))
        sys.stdout.flush()

    def break_off(self) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()

    def end(self) -> None:
        sys.stdout.write("\n" if self._has_begun else "(nothing)\n")
        sys.stdout.flush()


class _Streamer(TextStreamer):  # type: ignore[misc] # transformers has no types
    """Hands on what a model says word by word, as transformers decodes it."""

    def __init__(self, speaker: Speaker, write: Callable[[str], None]) -> None:
        super().__init__(speaker.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with what cannot change any more."""
        self._write(text)
