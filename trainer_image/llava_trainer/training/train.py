"""Training from the newest checkpoint, or from the beginning, to the result: puts together what the loop runs.

Every rank runs the same; what only one of them does (files for all, reports) asks ``is_first``.
"""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from llava_api.constants import StageName
from llava_api.report import TrainNumbers
from llava_api.run_config import RunConfig
from llava_trainer.attempts.folder import Fence
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.gang.stopping import StopRequest, saving_time_s
from llava_trainer.gang.watchdog import Beat
from llava_trainer.gang.world import World
from llava_trainer.model.attention import attention_of
from llava_trainer.reporting import Reporter
from llava_trainer.training.artifacts import publish_result
from llava_trainer.training.batch_plan import BatchPlan, make_plan
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.curve import Curve
from llava_trainer.training.hardest import EpochLosses, HardestSamples, carry_over
from llava_trainer.training.held_out_answers import HeldOutAnswers, draw_questions
from llava_trainer.training.identity import identify_training
from llava_trainer.training.loop import Loop
from llava_trainer.training.model_under_training import ModelUnderTraining, build_model
from llava_trainer.training.phase import Phase, open_samples, phase_of
from llava_trainer.training.probe import probe_largest
from llava_trainer.training.progress import Progress
from llava_trainer.training.recorder import Recorder
from llava_trainer.training.resuming import ResumePoint, go_back_to_best, resume
from llava_trainer.training.retention import remove_unfinished, step_of
from llava_trainer.training.saving import Saver
from llava_trainer.training.selection import Selection
from llava_trainer.training.servable import write_servable
from llava_trainer.training.tracking.follower import following
from llava_trainer.training.tracking.opening import make_followers
from llava_trainer.training.utilisation import find_utilisation
from llava_trainer.training.validation import Validator


def train(
    config: RunConfig,
    world: World,
    reporter: Reporter,
    stop: StopRequest,
    beat: Beat = lambda doing: None,
    progress: Progress | None = None,
) -> TrainNumbers | None:
    """Train to the end and write the result. ``beat`` is told what it does, ``progress`` how far it is.

    Returns:
        What was reached, in the first rank; None in the others.

    Raises:
        StageError: Interrupted (a checkpoint was saved before), Superseded, LossNotFinite, NothingSupervised,
            ZeroGradient, AdapterUnchanged, CheckpointMismatch, OutOfDeviceMemory, InvalidModel, InvalidData,
            InvalidConfig.
        OSError: a checkpoint or the result could not be written.
    """
    progress = progress or Progress()
    phase = phase_of(config)
    processor = load_processor(config.model_dir, phase.image_aspect_ratio)
    with ExitStack() as stack:
        samples = stack.enter_context(open_samples(phase))
        sizes = samples.measure(processor, phase.template, phase.training.max_length)
        plan = make_plan(phase, sizes, world.world_size, samples.sizes_mixed)
        model = build_model(config, phase, world)
        identity = world.broadcast(identify_training(config, phase) if world.is_first else {})
        resume_point = resume(
            model.engine, model.named_trainable(), world, config.volume, phase.stage, config.run.attempt,
            identity, plan.total_steps,
        )  # fmt: skip
        progress.begin(resume_point.step)
        loader = stack.enter_context(
            BatchLoader(
                samples, processor, images=phase.images, max_length=phase.training.max_length, plan=plan,
                rank=world.rank, template=phase.template, dtype=model.dtype, pinned=world.device.type == "cuda",
            )
        )  # fmt: skip
        probe_largest(model, loader, plan, world)
        saver = stack.enter_context(_open_saver(config, phase, model, world, resume_point, reporter.fence))
        recorder = None
        if world.is_first:
            history = stack.enter_context(_open_history(config, resume_point))
            validation = phase.training.validation
            recorder = Recorder(
                history, reporter, plan, first_step=resume_point.step,
                validate_every=validation.every_steps if validation else None,
                utilisation=find_utilisation(config, phase, plan, world, model.dtype),
                followers=stack.enter_context(following(make_followers(config, plan.total_steps))),
            )  # fmt: skip
            recorder.record_skipped([f"{path.parent.parent.name}/{path.name}" for path in resume_point.passed_over])
        loop = Loop(
            phase=phase, plan=plan, samples=samples, model=model, world=world, loader=loader, saver=saver,
            recorder=recorder, stop=stop, beat=beat, progress=progress, first_step=resume_point.step, identity=identity,
            fence=reporter.fence, hardest=_open_hardest(config, phase, plan, resume_point, world),
            validator=_open_validator(phase, model, world, processor, beat, stack),
            selection=_known_selection(phase, resume_point, world),
        )  # fmt: skip
        steps = loop.run()
    best_step = loop.selection.best_step if phase.training.keep_best else None
    if best_step not in (None, steps):
        go_back_to_best(
            model.engine, model.named_trainable(), world, config.volume, phase.stage, config.run.attempt, best_step
        )
    publish_result(model, config.volume, world, reporter.fence.check)
    world.barrier()
    if recorder is None:
        return None
    seen = loop.last_validation
    return TrainNumbers(
        steps=steps,
        final_loss=recorder.last_loss,
        trainable_parameters=model.num_parameters,
        tokens=recorder.tokens,
        world_size=world.world_size,
        attention=attention_of(model.llava.config),
        validation_loss=loop.selection.best_loss if best_step is not None else seen and seen.loss,
        validation_exact=loop.selection.best_exact if best_step is not None else seen and seen.exact,
        best_step=best_step,
        stopped_early=steps < plan.total_steps,
        frozen_projector=not phase.learns_projector,
        learned_tower=phase.learns_tower,
    )


def _open_saver(
    config: RunConfig, phase: Phase, model: ModelUnderTraining, world: World, resume_point: ResumePoint, fence: Fence
) -> Saver:
    checkpoints = config.volume.checkpoints_dir(phase.stage, config.run.attempt)
    if world.is_first:
        remove_unfinished(config.volume, phase.stage, config.run.attempt)
    return Saver(
        world,
        checkpoints,
        keep=phase.training.checkpoint.keep,
        write_servable=partial(write_servable, model),
        earlier=[folder for folder in resume_point.found if folder.parent != checkpoints],
        passed_over=resume_point.passed_over,
        saving_time_s=saving_time_s(config.workers.grace_period_seconds),
        check=fence.check,
        keep_best=phase.training.keep_best is not None,
    )


def _open_history(config: RunConfig, resume_point: ResumePoint) -> Curve:
    file = config.volume.history_file(config.run.stage, config.run.attempt)
    if resume_point.folder is None:
        return Curve(file)
    return Curve(file, resumed_from=_beside(resume_point.folder, file.name), resumed_step=resume_point.step)


def _beside(checkpoint: Path, name: str) -> Path:
    """A file of the attempt that made a checkpoint: STAGE-N/checkpoints/step-M lies beside it."""
    return checkpoint.parent.parent / name


def _open_hardest(
    config: RunConfig, phase: Phase, plan: BatchPlan, resume_point: ResumePoint, world: World
) -> HardestSamples | None:
    """What finds the hardest samples; nothing in phase 1, of which there is no report."""
    if phase.stage is not StageName.TRAIN:
        return None
    file = config.volume.hardest_file(phase.stage, config.run.attempt)
    carried: tuple[EpochLosses, ...] = ()
    if world.is_first and resume_point.folder is not None:
        carried = carry_over(_beside(resume_point.folder, file.name), resume_point.step)
    return HardestSamples(plan, file, carried)


def _known_selection(phase: Phase, resume_point: ResumePoint, world: World) -> Selection:
    """What validation had found; nothing where the best step's checkpoint, which would be taken, is not there."""
    best_step = resume_point.selection.best_step
    if phase.training.keep_best is None or best_step is None:
        return resume_point.selection
    usable = set(resume_point.found) - set(resume_point.passed_over)
    is_there = any(step_of(folder) == best_step for folder in usable)
    return resume_point.selection if world.broadcast(is_there) else Selection()


def _open_validator(
    phase: Phase, model: ModelUnderTraining, world: World, processor: Processor, beat: Beat,
    stack: ExitStack,
) -> Validator | None:  # fmt: skip
    """What looks at held-out samples; None where nobody asks for it, or nothing was held out."""
    settings = phase.training.validation
    if settings is None or phase.held_out_file is None:
        return None
    samples = stack.enter_context(SampleFile(phase.held_out_file))
    if len(samples) == 0:
        return None
    answers = None
    if settings.answers is not None:
        questions = draw_questions(
            samples, settings.answers, processor, seed=phase.training.seed, max_length=phase.training.max_length
        )
        answers = HeldOutAnswers(
            settings=settings.answers, questions=questions, model=model, world=world, processor=processor,
            images=phase.images, beat=beat,
        )  # fmt: skip
    return Validator(
        settings=settings, phase=phase, model=model, world=world, samples=samples, processor=processor, beat=beat,
        answers=answers,
    )  # fmt: skip
