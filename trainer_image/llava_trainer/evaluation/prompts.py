"""The questions of the spec, which both models are asked besides those of the dataset."""

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.spec import Prompt
from llava_api.volume import RunVolume
from llava_trainer.data.image_folder import training_images
from llava_trainer.data.images import ImageError, open_image
from llava_trainer.data.questions import Question
from llava_trainer.data.samples import Turn, read_samples
from llava_trainer.errors import StageError


def ask_prompts(config: RunConfig) -> list[Question]:
    """The prompts of the spec.

    Raises:
        StageError: a prompt's image cannot be opened.
    """
    return [_ask_prompt(index, prompt, config) for index, prompt in enumerate(config.evaluation.prompts)]


def _ask_prompt(index: int, prompt: Prompt, config: RunConfig) -> Question:
    if prompt.image is not None:
        try:
            open_image(training_images(config).resolve(prompt.image))
        except ImageError as error:
            raise StageError(
                Reason.INVALID_DATA,
                f"spec.evaluation.prompts[{index}].image is {prompt.image!r} (below spec.dataset.images, "
                f"{config.dataset.images!r}), which {error}",
            ) from error
    return Question(
        set="prompt",
        place=index,
        sample=str(index + 1),
        number=1,
        images=() if prompt.image is None else (prompt.image,),
        turns=(Turn(role="user", text=prompt.text.strip()),),
        image_turns=() if prompt.image is None else (0,),
    )


@dataclass(frozen=True, kw_only=True)
class PictureSides:
    """Which pictures of the dataset training has seen, and which were held out from it; by name, normalised."""

    trained: frozenset[str] = frozenset()
    held_out: frozenset[str] = frozenset()

    @classmethod
    def read(cls, volume: RunVolume) -> Self:
        """As prepare has left the samples of both sides."""
        held_out = [file for file in (volume.validation_file, volume.selection_file) if file.is_file()]
        return cls(trained=_names([volume.train_file]), held_out=_names(held_out))

    @classmethod
    def of_run(cls, config: RunConfig) -> Self | None:
        """Those of a run; None where nothing is trained on the dataset, or no prompt shows a picture."""
        shows = any(prompt.image is not None for prompt in config.evaluation.prompts)
        # All of training's samples are read for it.
        return cls.read(config.volume) if shows and config.training.method != "none" else None

    def tell(self, images: Iterable[str]) -> str | None:
        """What training has seen of a prompt's picture, as a sentence without its full stop; None without a picture."""
        names = {posixpath.normpath(image) for image in images}
        if not names:
            return None
        if names & self.trained:
            return "training has seen this picture"
        if names & self.held_out:
            return "held out: training has not seen this picture"
        return "not in the dataset: training has not seen this picture"


def _names(files: Iterable[Path]) -> frozenset[str]:
    return frozenset(
        posixpath.normpath(image) for file in files for sample in read_samples(file) for image in sample.images
    )
