"""The rendezvous of all pods' launchers: a key-value store in the first pod's launcher.

torch's elastic agents do not tell each other of failures: when a rank dies in one pod, the others may wait in a
collective operation until it times out. Here the first to fail tells the others (see ``heartbeats``).

The store takes keys from anyone who reaches its port. Every value is signed (``signing``); what is not counts as
absent.
"""

import logging
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from llava_api.failures import Reason
from llava_api.report import StageFailure
from llava_trainer.errors import StageError
from llava_trainer.gang.signing import Signer

_FAILURE = "rendezvous/failure"
_RESULT = "rendezvous/result"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for whom. Seconds."""

    arrival_s: float = 1800.0
    """For all pods to be there: they may be scheduled minutes apart, and pull a large image. Longer than the operator
    lets part of a gang hold its places (``scheduling.gangTimeoutSeconds``): that costs no restart."""
    agents_s: float = 60.0
    """For torch's elastic agents to find each other, once all launchers are here."""
    silence_s: float = 60.0
    """Without a heartbeat until a launcher is taken for dead."""
    result_s: float = 3600.0
    """For the first launcher's result: it hashes that before, which with method full are 26 GB of a 13B
    model on a volume that may be slow. Should it end instead, its connection breaks."""
    farewell_s: float = 15.0
    """For the others to take note, before the first launcher takes the store away with it."""
    interval_s: float = 1.0
    """Between two looks."""


class Rendezvous:
    """One launcher's place at the rendezvous. Threads may share it, as they may the store.

    Nothing here waits inside the store, which lets one operation in at a time: values are read by ``compare_set``,
    which answers at once, whatever is there. It also comes after every ``set`` of the same connection, which by itself
    may still be on its way when the process ends.
    """

    def __init__(
        self, host: str, port: int, *, node: int, num_nodes: int, signer: Signer, patience: Patience | None = None
    ) -> None:
        """Take part in the rendezvous at ``host``:``port``; the launcher of node 0 holds its store.

        Values are signed by ``signer``, and believed where theirs is the same.

        Raises:
            StageError: RendezvousFailed; the first pod could not be reached in time, or the port is taken.
        """
        self._node = node
        self._num_nodes = num_nodes
        self._signer = signer
        self._num_beats = 0
        self._result: str | None = None
        self._patience = patience or Patience()
        self._deadline = time.monotonic() + self._patience.arrival_s
        self._where = f"{host}:{port}"
        if node != 0:
            self._await_host(host, port)
        try:
            # Multi-tenant: the elastic agent of this process shares the server.
            self._store = TCPStore(
                host,
                port,
                is_master=node == 0,
                wait_for_workers=False,
                multi_tenant=True,
                timeout=timedelta(seconds=30),
            )
        except DistError as error:
            raise StageError(Reason.RENDEZVOUS_FAILED, f"no rendezvous at {self._where}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def await_all(self) -> None:
        """Wait until every pod's launcher is here.

        Raises:
            StageError: RendezvousFailed, naming the pods that did not come; or what another pod has failed of.
        """
        self.beat()
        while missing := [node for node in range(self._num_nodes) if self._read(_heartbeat(node)) is None]:
            failure = self.find_failure()
            if failure:
                raise StageError(
                    failure.reason, failure.message, rank=failure.rank, step=failure.step,
                    attempt_steps=failure.attempt_steps,
                )  # fmt: skip
            if time.monotonic() > self._deadline:
                raise StageError(
                    Reason.RENDEZVOUS_FAILED,
                    f"{self._num_nodes - len(missing)} of {self._num_nodes} training pods were here after "
                    f"{self._patience.arrival_s:.0f} s; missing: {', '.join(map(str, missing[:10]))}",
                )
            time.sleep(self._patience.interval_s)
            # Somebody may have written over the last one.
            self.beat()

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            DistError: the first launcher is gone.
        """
        self._num_beats += 1
        self._write(_heartbeat(self._node), str(self._num_beats))

    def count_beats(self) -> dict[int, int]:
        """Signs of life so far of the other launchers that have not left.

        Raises:
            DistError: the first launcher is gone.
        """
        return {
            node: int(self._read(_heartbeat(node)) or 0)
            for node in range(self._num_nodes)
            if node != self._node and self._read(_left(node)) is None
        }

    def report_failure(self, failure: StageFailure) -> StageFailure:
        """Report a failure; returns the one that was first, which may be another launcher's."""
        try:
            first = self._write(_FAILURE, failure.model_copy(update={"log_tail": ""}).model_dump_json(), replaces=False)
            return StageFailure.model_validate_json(first).model_copy(update={"log_tail": failure.log_tail})
        except DistError:
            # The first launcher is gone, and with it what it knew.
            return failure

    def find_failure(self, wait_s: float = 0.0) -> StageFailure | None:
        """A failure that was reported, waiting for it up to ``wait_s`` seconds."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                if (reported := self._read(_FAILURE)) is not None:
                    return StageFailure.model_validate_json(reported)
            except DistError:
                return None
            if time.monotonic() >= deadline:
                return None
            time.sleep(min(0.1, self._patience.interval_s))

    def announce_result(self, result: str) -> None:
        """Give the other launchers the result; the first one's part."""
        self._result = result
        self._write(_RESULT, result)

    def find_result(self) -> str | None:
        """The first launcher's result; None if there is none yet. Never waits.

        Raises:
            StageError: RendezvousFailed; it is gone.
        """
        try:
            return self._read(_RESULT)
        except DistError as error:
            raise StageError(Reason.RENDEZVOUS_FAILED, "the first training pod is gone") from error

    def await_result(self) -> str:
        """The first launcher's result.

        Raises:
            StageError: RendezvousFailed; it is gone, or says nothing.
        """
        deadline = time.monotonic() + self._patience.result_s
        try:
            while (result := self._read(_RESULT)) is None:
                if time.monotonic() > deadline:
                    raise StageError(Reason.RENDEZVOUS_FAILED, "the first training pod does not say what came out")
                time.sleep(0.1)
            return result
        except DistError as error:
            raise StageError(Reason.RENDEZVOUS_FAILED, "the first training pod is gone") from error

    def _await_host(self, host: str, port: int) -> None:
        trouble = ""
        while time.monotonic() < self._deadline:
            try:
                # A bare connection first: TCPStore's own attempts fill the log with backtraces.
                socket.create_connection((host, port), timeout=5).close()
            except OSError as error:
                trouble = str(error)
                time.sleep(self._patience.interval_s)
            else:
                return
        raise StageError(
            Reason.RENDEZVOUS_FAILED,
            f"the first training pod could not be reached at {self._where} within {self._patience.arrival_s:.0f} s: "
            f"{trouble}",
        )

    def _leave(self) -> None:
        """Say goodbye; the first launcher waits for the others to do so, since the store goes with it."""
        try:
            self._write(_left(self._node), "left")
            deadline = time.monotonic() + self._patience.farewell_s
            others = [_left(node) for node in range(1, self._num_nodes)] if self._node == 0 else []
            while any(self._read(name) is None for name in others) and time.monotonic() < deadline:
                time.sleep(0.1)
                if self._result is not None:
                    self._write(_RESULT, self._result)
        except DistError:
            logger.info("the first training pod had left already")

    def _read(self, name: str) -> str | None:
        """What one of us has written under ``name``."""
        return self._signer.verify(name, self._store.compare_set(name, "", ""))

    def _write(self, name: str, value: str, *, replaces: bool = True) -> str:
        """Write a value; returns what one of us has written under ``name``.

        Args:
            name: key of the store.
            value: what to write.
            replaces: whether to put it in the place of an earlier value of ours. What is not ours is always replaced.
        """
        signed = self._signer.sign(name, value)
        if not replaces:
            found = self._signer.verify(name, self._store.compare_set(name, "", signed))
            if found is not None:
                return found
        self._store.set(name, signed)
        return self._read(name) or value


def _heartbeat(node: int) -> str:
    return f"rendezvous/heartbeat/{node}"


def _left(node: int) -> str:
    return f"rendezvous/left/{node}"
