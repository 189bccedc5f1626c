"""The training loop: from the newest checkpoint, or from the beginning, to the adapter.

Every rank runs the same steps; what only one of them does (files for all, reports) asks ``is_first``.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NoReturn

from llava_api.failures import Reason
from llava_api.report import TrainNumbers
from llava_api.run_config import RunConfig
from llava_trainer.attempts.folder import Fence
from llava_trainer.data.processor import load_processor
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.errors import StageError
from llava_trainer.gang.stopping import AskedToStopError, StopAgreement, StopRequest, saving_time_s
from llava_trainer.gang.watchdog import Beat, Doing
from llava_trainer.gang.world import World
from llava_trainer.reporting import Reporter
from llava_trainer.training.artifacts import publish_result
from llava_trainer.training.batch_plan import BatchPlan, make_plan
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.checkpoint import CheckpointState
from llava_trainer.training.checks import check_finite, check_gradient, check_supervised
from llava_trainer.training.curve import Curve
from llava_trainer.training.identity import identify_training
from llava_trainer.training.model_under_training import ModelUnderTraining, build_model
from llava_trainer.training.phase import Phase, phase_of
from llava_trainer.training.probe import probe_largest
from llava_trainer.training.progress import Progress
from llava_trainer.training.recorder import Recorder
from llava_trainer.training.resuming import ResumePoint, resume, shapes_of
from llava_trainer.training.retention import remove_unfinished
from llava_trainer.training.saving import Saver
from llava_trainer.training.schedule import Schedule
from llava_trainer.training.servable import write_servable
from llava_trainer.training.slices import list_slices, slices_to_save
from llava_trainer.training.step import count_batch, draw_seed, run_step


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
        samples = stack.enter_context(SampleFile(phase.samples_file))
        plan = make_plan(phase, samples.measure(processor, phase.template, phase.training.max_length), world.world_size)
        model = build_model(config, phase, world)
        identity = world.broadcast(identify_training(config, phase) if world.is_first else {})
        resume_point = resume(
            model.engine, model.named_trainable(), world, config.volume, phase.stage, config.run.attempt,
            identity,
        )  # fmt: skip
        progress.begin(resume_point.step)
        loader = stack.enter_context(
            BatchLoader(
                samples, processor, images=phase.images, max_length=phase.training.max_length, plan=plan,
                rank=world.rank, template=phase.template,
            )
        )  # fmt: skip
        probe_largest(model, loader, plan, world)
        saver = stack.enter_context(_open_saver(config, phase, model, world, resume_point, reporter.fence))
        recorder = None
        if world.is_first:
            history = stack.enter_context(_open_history(config, resume_point))
            recorder = Recorder(history, reporter, plan, first_step=resume_point.step)
            recorder.record_skipped([f"{path.parent.parent.name}/{path.name}" for path in resume_point.passed_over])
        Loop(
            phase=phase, plan=plan, model=model, world=world, loader=loader, saver=saver,
            recorder=recorder, stop=stop, beat=beat, progress=progress, first_step=resume_point.step, identity=identity,
            fence=reporter.fence,
        ).run()  # fmt: skip
    publish_result(model, config.volume, world, reporter.fence.check)
    world.barrier()
    if recorder is None:
        return None
    return TrainNumbers(
        steps=plan.total_steps,
        final_loss=recorder.last_loss,
        trainable_parameters=model.num_parameters,
        tokens=recorder.tokens,
        world_size=world.world_size,
        attention=model.llava.config.text_config._attn_implementation,
    )


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Runs the steps that are left."""

    phase: Phase
    plan: BatchPlan
    model: ModelUnderTraining
    world: World
    loader: BatchLoader
    saver: Saver
    recorder: Recorder | None
    """Only in the first rank."""
    stop: StopRequest
    beat: Beat
    progress: Progress
    first_step: int
    identity: Mapping[str, str]
    """What this training is, to be told in its checkpoints."""
    fence: Fence
    """Asked in the first rank."""

    def run(self) -> None:
        """Run them.

        Raises:
            StageError: Interrupted, Superseded, LossNotFinite, NothingSupervised, ZeroGradient.
            OSError: a checkpoint could not be written.
        """
        for step in range(self.first_step, self.plan.total_steps):
            self._run_step(step)
            # After the last step comes the result itself.
            if (step + 1) % self.phase.training.checkpoint.every_steps == 0 and step + 1 < self.plan.total_steps:
                self._save(step + 1)
            self._note_saved(self.saver.check())
        self._finish_saving()

    def _run_step(self, step: int) -> None:
        began = time.monotonic()
        self.beat(Doing.LOADING)
        micro_batches = self.loader.load(step)
        self.beat(Doing.WAITING)
        totals = count_batch(micro_batches, self.stop.received, self.world, self.progress.last_step_s)
        if totals.last_step_s:
            self.progress.measure(totals.last_step_s)
        if totals.stop:
            self._stop_after(step)
        batch = self.plan.batch(step)
        check_supervised(totals, step + 1, batch)
        try:
            outcome = run_step(
                self.model, self.world, micro_batches, totals, factor=self._schedule.factor(step),
                samples=len(batch), seeds=self._draw_seeds(step), beat=self.beat, agreement=self._agreement,
            )  # fmt: skip
        except AskedToStopError:
            # The optimiser holds the state after the last step; whoever goes on does this one from its beginning.
            self._stop_after(step)
        self.progress.finish_step(step + 1, time.monotonic() - began)
        check_finite(outcome, step + 1)
        if step == self.first_step:
            check_gradient(self.model, self.world, step + 1)
        if self.recorder:
            self.fence.check()
            self.recorder.record(step + 1, outcome, totals.peak_gpu_memory_bytes)

    @cached_property
    def _agreement(self) -> StopAgreement:
        return StopAgreement(self.stop, self.world)

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule(
            kind=self.phase.training.scheduler,
            total_steps=self.plan.total_steps,
            warmup_ratio=self.phase.training.warmup_ratio,
        )

    def _draw_seeds(self, step: int) -> list[int]:
        """What dropout of each micro-batch begins with; its first sample stands for it."""
        rank_batch = self.plan.rank_batch(step, self.world.rank)
        return [draw_seed(self.phase.training.seed, step, rows[0][0] if rows else 0) for rows in rank_batch]

    def _stop_after(self, step: int) -> NoReturn:
        if step > self.first_step and self.saver.begun_step != step:
            self._save(step)
        self._finish_saving()
        saved = self.saver.saved_step or self.first_step
        raise StageError(
            Reason.INTERRUPTED,
            f"training was asked to stop (SIGTERM) after step {step} of {self.plan.total_steps}; the checkpoint of "
            f"step {saved} is on the volume" if saved else
            "training was asked to stop (SIGTERM) before it had done a step",
        )  # fmt: skip

    def _save(self, step: int) -> None:
        self.beat(Doing.SAVING)
        engine, named = self.model.engine, self.model.named_trainable()
        state = CheckpointState(
            step=step, total_steps=self.plan.total_steps, world_size=self.world.world_size,
            seed=self.phase.training.seed, parameters=shapes_of(named), training=self.identity,
        )  # fmt: skip
        self.saver.begin(slices_to_save(list_slices(engine, named), engine), state)

    def _finish_saving(self) -> None:
        self.beat(Doing.SAVING)
        self.saver.finish()
        self._note_saved(self.saver.saved_step)

    def _note_saved(self, step: int | None) -> None:
        if self.recorder and step is not None:
            self.recorder.record_checkpoint(step)


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
    )


def _open_history(config: RunConfig, resume_point: ResumePoint) -> Curve:
    file = config.volume.history_file(config.run.stage, config.run.attempt)
    if resume_point.folder is None:
        return Curve(file)
    # The curve of the attempt that made the checkpoint: STAGE-N/checkpoints/step-M lies beside it.
    return Curve(file, resumed_from=resume_point.folder.parent.parent / file.name, resumed_step=resume_point.step)
