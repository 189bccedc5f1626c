"""The questions of the spec, which both models are asked besides those of the dataset."""

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.spec import Prompt
from llava_trainer.data.image_folder import training_images
from llava_trainer.data.images import ImageError, open_image
from llava_trainer.data.questions import Question
from llava_trainer.data.samples import Turn
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
