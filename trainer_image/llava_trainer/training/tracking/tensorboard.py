"""TensorBoard's event files, in the attempt's folder on the run's volume.

Each attempt writes the whole curve, the part of attempts before it included: in one folder no step stands twice.
"""

from collections.abc import Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from llava_trainer.files import make_folder
from llava_trainer.training.tracking.observations import Observation


class EventFile:
    """A destination. One that failed is begun anew: what lies in the folder is removed first."""

    def __init__(self, folder: Path) -> None:
        """Begin a file in ``folder``, which is this attempt's own.

        Raises:
            OSError: it cannot be written.
        """
        make_folder(folder)
        for left in folder.glob("events.out.tfevents.*"):
            left.unlink()
        self._writer = EventsWriter(str(folder / "events"))
        self._writer.flush()
        self._last: dict[str, int] = {}

    def last_step_of(self, name: str) -> int:
        """See ``Destination``."""
        return self._last.get(name, 0)

    def write(self, observations: Sequence[Observation]) -> None:
        """See ``Destination``.

        Raises:
            OSError: it cannot be written.
        """
        for one in observations:
            value = Summary.Value(tag=one.name, simple_value=one.value)
            self._writer.write_event(Event(wall_time=one.time_s, step=one.step, summary=Summary(value=[value])))
        self._writer.flush()
        self._last |= {one.name: one.step for one in observations}

    def finish(self, *, succeeded: bool) -> None:
        """See ``Destination``."""

    def close(self) -> None:
        """See ``Destination``."""
        self._writer.close()
