"""A tracking server of MLflow, by its REST interface (https://mlflow.org/docs/latest/api_reference/rest-api.html).

Of MLflow's own client seven requests are needed, and it would bring its own ways out and its own retries. The server
is a stranger: redirects are not followed, answers are bounded and held to their form, and nothing of what it says is
logged but MLflow's own words for errors, since it may send back what it was sent.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import httpx

from llava_api.run_config import RunIdentity
from llava_trainer.retrying import TransientError
from llava_trainer.sources.responses import explain_transport, read_bounded
from llava_trainer.training.tracking.observations import NAMES, Observation

FIELD = "spec.training.tracking.mlflow"
MAX_METRICS = 1000
"""Of one log-batch request: the server's limit."""
_MAX_ANSWER_BYTES = 1 << 20
_TAG_UID, _TAG_STAGE = "llava.run_uid", "llava.stage"
_NAMES = frozenset(NAMES.values())
_NO_SUCH, _EXISTS = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
_ERROR_CODES = frozenset({
    _NO_SUCH, _EXISTS, "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED", "UNAUTHENTICATED",
    "INVALID_STATE", "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ENDPOINT_NOT_FOUND",
})  # fmt: skip


class TrackerError(Exception):
    """The server does not do what it should; says nothing that the server has said."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Server:
    """How the server is asked."""

    client: httpx.Client
    """Follows no redirect."""
    url: str
    credential: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers."""

    def ask(self, method: str, path: str, said: Mapping[str, Any]) -> dict[str, Any]:
        """One request.

        Args:
            method: GET or POST.
            path: below api/2.0/mlflow.
            said: query or body.

        Raises:
            TrackerError: it was refused, or what came is no answer of MLflow's.
            TransientError, StageError: the server was not reached.
        """
        url = f"{self.url.rstrip('/')}/api/2.0/mlflow/{path}"
        given: dict[str, Any] = {"params": said} if method == "GET" else {"json": said}
        request = self.client.build_request(method, url, headers=self.credential, **given)
        try:
            response = self.client.send(request, stream=True)
            try:
                content = read_bounded(response, _MAX_ANSWER_BYTES)
            finally:
                response.close()
        except TransientError as error:
            raise TrackerError(f"{FIELD}.url: {path}: {error}") from None
        except httpx.RequestError as error:
            # Not "from error": what the server or a proxy has sent may be in it.
            raise explain_transport(error, f"{FIELD}.url", self.url) from None
        answer = _parse(content)
        if response.status_code != httpx.codes.OK:
            code = answer.get("error_code") if answer else None
            known = code if isinstance(code, str) and code in _ERROR_CODES else ""
            told = f" ({known})" if known else ""
            raise TrackerError(f"{FIELD}.url: {path}: HTTP {response.status_code}{told}", known)
        if answer is None:
            raise TrackerError(f"{FIELD}.url: {path}: the answer is not one of MLflow's")
        return answer


class MlflowRun:
    """A destination: the one run with MLflow that stands for a stage of this run, whichever attempt it is in."""

    def __init__(self, server: Server, run: RunIdentity, experiment: str, total_steps: int) -> None:
        """Find the run, or begin one.

        Args:
            server: that is asked.
            run: whose curve it is.
            experiment: name of the experiment.
            total_steps: that the run may come to.

        Raises:
            TrackerError, TransientError, StageError: as ``Server.ask``.
        """
        self._server = server
        self._resources = ExitStack()
        experiment_id = self._find_experiment(experiment)
        known = self._find_run(experiment_id, run)
        self._id = known or self._begin_run(experiment_id, run)
        found = self._server.ask("GET", "runs/get", {"run_id": self._id})
        self._last = dict(_last_steps(_get(found, "run", "data").get("metrics", ()), total_steps))
        if known is not None:
            self._server.ask("POST", "runs/update", {"run_id": self._id, "status": "RUNNING"})

    def last_step_of(self, name: str) -> int:
        """See ``Destination``."""
        return self._last.get(name, 0)

    def write(self, observations: Sequence[Observation]) -> None:
        """See ``Destination``.

        Raises:
            TrackerError, TransientError, StageError: as ``Server.ask``.
        """
        left = iter(observations)
        while batch := list(islice(left, MAX_METRICS)):
            metrics = [
                {"key": one.name, "value": one.value, "timestamp": round(one.time_s * 1000), "step": one.step}
                for one in batch
            ]
            self._server.ask("POST", "runs/log-batch", {"run_id": self._id, "metrics": metrics})
            self._last |= {one.name: one.step for one in batch}

    def finish(self, *, succeeded: bool) -> None:
        """See ``Destination``. What did not end well may go on in another attempt."""
        status = "FINISHED" if succeeded else "KILLED"
        end = {"run_id": self._id, "status": status, "end_time": round(time.time() * 1000)}
        self._server.ask("POST", "runs/update", end)

    def keep_open(self, resources: ExitStack) -> None:
        """Close ``resources`` with the destination."""
        self._resources = resources

    def close(self) -> None:
        """See ``Destination``."""
        self._resources.close()

    def _find_experiment(self, name: str) -> str:
        try:
            found = self._server.ask("GET", "experiments/get-by-name", {"experiment_name": name})
            return _text(_get(found, "experiment"), "experiment_id")
        except TrackerError as error:
            if error.code != _NO_SUCH:
                raise
        try:
            return _text(self._server.ask("POST", "experiments/create", {"name": name}), "experiment_id")
        except TrackerError as error:
            if error.code != _EXISTS:
                raise
        # Another run of the same experiment was quicker.
        found = self._server.ask("GET", "experiments/get-by-name", {"experiment_name": name})
        return _text(_get(found, "experiment"), "experiment_id")

    def _find_run(self, experiment_id: str, run: RunIdentity) -> str | None:
        wanted = f"tags.`{_TAG_UID}` = '{run.uid}' and tags.`{_TAG_STAGE}` = '{run.stage}'"
        asked = {"experiment_ids": [experiment_id], "filter": wanted, "max_results": 1}
        runs = self._server.ask("POST", "runs/search", asked).get("runs", [])
        return _text(_get(runs[0], "info"), "run_id") if isinstance(runs, list) and runs else None

    def _begin_run(self, experiment_id: str, run: RunIdentity) -> str:
        name = run.name if run.stage == "train" else f"{run.name} ({run.stage})"
        tags = {_TAG_UID: run.uid, _TAG_STAGE: run.stage, "llava.namespace": run.namespace, "llava.name": run.name}
        asked = {"experiment_id": experiment_id, "run_name": name, "tags": [
            {"key": key, "value": str(value)} for key, value in tags.items()
        ]}  # fmt: skip
        return _text(_get(self._server.ask("POST", "runs/create", asked), "run", "info"), "run_id")


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _get(answer: object, *path: str) -> dict[str, Any]:
    """A part of an answer.

    Raises:
        TrackerError: there is none.
    """
    for key in path:
        answer = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(answer, dict):
        raise TrackerError(f"{FIELD}.url: an answer lacks {'.'.join(path)}")
    return answer


def _text(answer: Mapping[str, Any], key: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        raise TrackerError(f"{FIELD}.url: an answer lacks {key}")
    return value


def _last_steps(metrics: object, total_steps: int) -> Iterator[tuple[str, int]]:
    """Of the metrics that are ours: others may have put more into the run.

    Raises:
        TrackerError: it is no list of metrics, or has steps that the run cannot have; nothing would be told then.
    """
    for metric in metrics if isinstance(metrics, list) else ():
        if not isinstance(metric, dict):
            raise TrackerError(f"{FIELD}.url: metrics of the run are not in MLflow's form")
        # Left out where it is 0; a number or, by JSON's mapping of 64 bits, its text.
        key, step = metric.get("key"), metric.get("step", 0)
        if not isinstance(key, str) or key not in _NAMES:
            continue
        try:
            last = int(step)
        except (TypeError, ValueError, OverflowError):
            raise TrackerError(f"{FIELD}.url: a metric's step is no number") from None
        if not 0 <= last <= total_steps:
            raise TrackerError(
                f"{FIELD}.url: the run there has a step of {key} that this run, of {total_steps:,} steps, cannot have: "
                f"delete it there, or name another {FIELD}.experiment"
            )
        yield key, last
