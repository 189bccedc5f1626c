"""The training loop: from the newest checkpoint, or from the beginning, to the adapter.

Every process runs the same steps; what only one of them does (files for all, reports) asks ``is_first``.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from llava_api.failures import Reason
from llava_api.report import TrainNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.processing import load_processing
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.errors import StageError
from llava_trainer.reporting import Reporter
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.checkpoint import CheckpointState
from llava_trainer.training.history import History
from llava_trainer.training.phase import Phase, phase_of
from llava_trainer.training.plan import Plan, make_plan
from llava_trainer.training.probe import probe_longest
from llava_trainer.training.processes import Processes
from llava_trainer.training.recorder import Recorder
from llava_trainer.training.results import publish_result
from llava_trainer.training.resuming import resume, save_checkpoint
from llava_trainer.training.schedule import Schedule
from llava_trainer.training.step import check_finite, count_batch, run_step
from llava_trainer.training.stopping import StopRequest
from llava_trainer.training.trainee import Trainee, build_trainee

logger = logging.getLogger(__name__)


def train(config: RunConfig, processes: Processes, reporter: Reporter, stop: StopRequest) -> TrainNumbers | None:
    """Train to the end and write the adapter.

    Returns:
        What was reached, in the first process; None in the others.

    Raises:
        StageError: Interrupted (a checkpoint was saved before), LossNotFinite, InvalidModel, InvalidData,
            InvalidConfig, InternalError (nothing was learned).
    """
    phase = phase_of(config)
    processing = load_processing(config.model_dir, phase.image_aspect_ratio)
    with ExitStack() as stack:
        samples = stack.enter_context(SampleFile(phase.samples_file))
        plan = make_plan(phase, samples.measure(processing, phase.template, phase.max_length), processes.world_size)
        trainee = build_trainee(config, phase, processes)
        resumed = resume(trainee.engine, processes, config.volume, phase.stage, config.run.attempt)
        loader = stack.enter_context(
            BatchLoader(
                samples, processing, images=phase.images_dir, max_length=phase.max_length, plan=plan,
                rank=processes.rank, template=phase.template,
            )
        )  # fmt: skip
        probe_longest(trainee, loader, plan, processes)
        recorder = None
        if processes.is_first:
            recorder = Recorder(stack.enter_context(_open_history(config, resumed)), reporter, plan)
        Loop(
            config=config, phase=phase, plan=plan, trainee=trainee, processes=processes, loader=loader,
            recorder=recorder, stop=stop,
            first_step=resumed[0].step if resumed else 0,
        ).run()  # fmt: skip
    publish_result(trainee, config.volume, is_first=processes.is_first)
    processes.barrier()
    if recorder is None:
        return None
    return TrainNumbers(
        steps=plan.total_steps,
        final_loss=recorder.last_loss,
        trainable_parameters=trainee.num_parameters,
        tokens=recorder.tokens,
        world_size=processes.world_size,
    )


@dataclass(kw_only=True)
class Loop:
    """Runs the steps that are left."""

    config: RunConfig
    phase: Phase
    plan: Plan
    trainee: Trainee
    processes: Processes
    loader: BatchLoader
    recorder: Recorder | None
    """Only in the first process."""
    stop: StopRequest
    first_step: int
    saved_step: int = field(init=False)
    """Last step that need not be done again."""

    def __post_init__(self) -> None:
        self.saved_step = self.first_step

    def run(self) -> None:
        """Run them.

        Raises:
            StageError: Interrupted, LossNotFinite.
        """
        phase = self.phase
        schedule = Schedule(kind=phase.scheduler, total_steps=self.plan.total_steps, warmup_ratio=phase.warmup_ratio)
        for step in range(self.first_step, self.plan.total_steps):
            micro_batches = self.loader.load(step)
            totals = count_batch(micro_batches, self.stop.received, self.processes)
            if totals.stop:
                self._stop_after(step)
            outcome = run_step(
                self.trainee, self.processes, micro_batches, totals,
                factor=schedule.factor(step), samples=len(self.plan.batch(step)),
            )  # fmt: skip
            done = step + 1
            check_finite(outcome, done)
            if self.recorder:
                self.recorder.record(done, outcome)
            # After the last step comes the adapter itself.
            if done % phase.checkpoint.every_steps == 0 and done < self.plan.total_steps:
                self._save(done)

    def _stop_after(self, step: int) -> None:
        if step > self.saved_step:
            self._save(step)
        raise StageError(
            Reason.INTERRUPTED,
            f"training was asked to stop (SIGTERM) after step {step} of {self.plan.total_steps}; the checkpoint of "
            f"step {self.saved_step} is on the volume" if self.saved_step else
            "training was asked to stop (SIGTERM) before it had done a step",
        )  # fmt: skip

    def _save(self, step: int) -> None:
        save_checkpoint(
            self.trainee.engine,
            self.trainee.tuned,
            self.processes,
            self.config.volume.checkpoints_dir(self.phase.stage, self.config.run.attempt),
            CheckpointState(step=step, world_size=self.processes.world_size, total_steps=self.plan.total_steps),
            self.phase.checkpoint.keep,
        )
        self.saved_step = step
        if self.recorder:
            self.recorder.record_checkpoint(step)


def _open_history(config: RunConfig, resumed: tuple[CheckpointState, Path] | None) -> History:
    file = config.volume.history_file(config.run.stage, config.run.attempt)
    if resumed is None:
        return History(file)
    state, folder = resumed
    # The curve of the attempt that made the checkpoint: attempts/STAGE-N/checkpoints/step-M lies beside it.
    return History(file, resumed_from=folder.parent.parent / file.name, resumed_step=state.step)
