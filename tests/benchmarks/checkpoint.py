"""What checkpoints cost training: how long it stands still for them, and how much slower it is while they are written.

The trainer's own loop on a LLaVA of 28 million parameters, with an adapter that makes for 200 MB of trainable state
(fp32 originals and both of Adam's moments), saved every 20 steps. Run it on a machine that has nothing else to do:
python -m tests.benchmarks.checkpoint
"""

import argparse
import itertools
import random
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from llava_api.run_config import RunConfig
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.watchdog import Doing
from llava_trainer.gang.world import join
from llava_trainer.reporting import Reporter
from llava_trainer.training.checkpoint import checkpoint_dir
from llava_trainer.training.train import train
from tests.benchmarks.model import write_model
from tests.tiny.tasks import corpus
from tests.trainer.trainings import environment_of_one, make_dataset, make_training

EVERY_STEPS = 20
RANK = 276
"""Of the adapter: 16.7 million numbers in it and the projector."""


@dataclass
class Clock:
    """Told what the loop does next, and with that when each step began and how long each save took."""

    config: RunConfig
    saves_s: list[float] = field(default_factory=list)
    steps_s: list[tuple[bool, float]] = field(default_factory=list)
    """For each step, whether a checkpoint was being written when it began, and how long it took without saving."""
    _began: float = 0.0
    _saving: float | None = None
    _writing: bool = False
    _step: int = 0

    def beat(self, doing: Doing) -> None:
        """Take in what comes next."""
        now = time.perf_counter()
        if doing is Doing.SAVING:
            self._end_step(now)
            self._saving = now
        elif doing is Doing.LOADING:
            if self._saving is not None:
                self.saves_s.append(now - self._saving)
                self._saving = None
            else:
                self._end_step(now)
            self._begin_step(now)

    @property
    def total_s(self) -> float:
        return sum(self.saves_s) + sum(seconds for _, seconds in self.steps_s)

    def pick_steps(self, *, writing: bool) -> list[float]:
        """Durations of the steps with or without writing beside them; the first ones warm up."""
        return [seconds for was_writing, seconds in self.steps_s[3:] if was_writing is writing]

    def _begin_step(self, now: float) -> None:
        self._began, self._step = now, self._step + 1
        last = (self._step - 1) // EVERY_STEPS * EVERY_STEPS
        checkpoints = self.config.volume.checkpoints_dir(self.config.run.stage, self.config.run.attempt)
        self._writing = last > 0 and not checkpoint_dir(checkpoints, last).exists()

    def _end_step(self, now: float) -> None:
        if self._step and self._began:
            self.steps_s.append((self._writing, now - self._began))
        self._began = 0.0


def configure(root: Path, num_steps: int) -> RunConfig:
    """A model, a dataset, and a run of ``num_steps`` steps below ``root``."""
    samples = make_dataset(root / "dataset", images_per_scene=2)
    write_model(root / "base", corpus(random.Random(0)))
    repeated = list(itertools.islice(itertools.cycle(samples), num_steps * 4))
    return make_training(
        root, root / "base", repeated,
        training={
            "lora": {"rank": RANK, "alpha": RANK}, "learningRate": 1e-5, "batch": {"perDevice": 4, "global": 4},
            "checkpoint": {"everySteps": EVERY_STEPS, "keep": 1}, "grouping": "none",
        },
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3 * EVERY_STEPS + 5)
    num_steps = parser.parse_args().steps
    root = Path(tempfile.mkdtemp(prefix="llava-bench-"))
    try:
        config = configure(root, num_steps)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        clock = Clock(config)
        with environment_of_one(port):
            numbers = train(config, join("cpu"), Reporter(config), StopRequest(), clock.beat)
        assert numbers is not None
        report(clock, numbers.trainable_parameters)
    finally:
        shutil.rmtree(root)


def report(clock: Clock, num_parameters: int) -> None:
    """Print the table."""
    beside, alone = median(clock.pick_steps(writing=True)), median(clock.pick_steps(writing=False))
    still_s = sum(clock.saves_s)
    print(f"trainable state              {num_parameters * 12 / 1e6:.0f} MB")
    print(f"steps, saves                 {len(clock.steps_s)}, {len(clock.saves_s)}")
    print(f"a save stands still for      {', '.join(f'{seconds * 1e3:.0f}' for seconds in clock.saves_s)} ms")
    print(f"share of the training time   {still_s / clock.total_s:.2%}")
    print(f"step alone, beside writing   {alone:.3f} s, {beside:.3f} s ({beside / alone - 1:+.0%})")
    print(f"steps with writing beside    {len(clock.pick_steps(writing=True))}")


if __name__ == "__main__":
    main()
