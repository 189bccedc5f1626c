"""What training has left on the volume of its course, put together with the samples that it is about."""

import logging
import math

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.data.processor import load_processor
from llava_trainer.data.questions import Question
from llava_trainer.data.sample_file import SampleFile, SampleSizes
from llava_trainer.evaluation.page_training import Hardest, HardSample
from llava_trainer.training.batch_plan import make_plan
from llava_trainer.training.hardest import read_hardest
from llava_trainer.training.held_out_answers import draw_questions
from llava_trainer.training.phase import open_samples, phase_of

logger = logging.getLogger(__name__)


def find_asked(config: RunConfig) -> tuple[Question, ...]:
    """The held-out questions that training has had answered at each validation, in the order of the curve's answers."""
    validation = config.training.validation
    if validation is None or validation.answers is None or config.training.method == "none":
        return ()
    phase = phase_of(config, StageName.TRAIN)
    assert phase.held_out_file is not None
    processor = load_processor(config.model_dir, phase.image_aspect_ratio)
    with SampleFile(phase.held_out_file) as samples:
        return draw_questions(
            samples, validation.answers, processor, seed=phase.training.seed, max_length=phase.training.max_length
        )


def find_hardest(config: RunConfig) -> Hardest | None:
    """The training samples with the highest loss; None where training has not told, or of other samples than these."""
    attempt = (config.volume.results or {}).get(StageName.TRAIN)
    state = read_hardest(config.volume.hardest_file(StageName.TRAIN, attempt)) if attempt is not None else None
    if state is None or state.last is None:
        return None
    last = state.last
    phase = phase_of(config, StageName.TRAIN)
    with open_samples(phase) as samples:
        plan = make_plan(phase, SampleSizes.unmeasured(len(samples)), 1, samples.sizes_mixed)
        if state.num_samples != plan.num_samples or any(found.index >= len(samples) for found in last.hardest):
            logger.warning("the hardest training samples are left out: they are of other samples than the run has")
            return None
        hard = tuple(
            HardSample(sample=samples[found.index], place=samples.describe_place(found.index), found=found)
            for found in last.hardest
        )
    return Hardest(
        epoch=last.epoch + 1,
        # However many maxSteps come to.
        epochs=math.ceil(plan.total_steps / plan.steps_per_epoch),
        seen=last.seen,
        num_samples=state.num_samples,
        samples=hard,
    )
