"""An API server in memory, and an operator whose passes go against it."""

import copy
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from llava_api.constants import API_VERSION
from llava_api.status import Status
from llava_operator.acting.api_errors import ApiErrors
from llava_operator.acting.events import EventPublisher
from llava_operator.acting.nodes import Nodes
from llava_operator.acting.notifying import Notifier
from llava_operator.acting.reconcile import Reconciler
from llava_operator.acting.report_authority import Authority
from llava_operator.acting.troubles import Troubles
from llava_operator.build.common import Platform
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.deciding.policy import Policy
from llava_operator.kube.errors import (
    AlreadyExistsError,
    ConflictError,
    KubeError,
    NotFoundError,
)
from llava_operator.kube.kinds import EVENTS, RUNS, Kind
from llava_operator.kube.objects import Key, Object
from llava_operator.run import parse_status
from llava_operator.telemetry.endings import compare
from tests.controller.makers import KEY, NOW, NOW_TEXT, RUN_UID, make_spec


def apply_patch(target: Object, patch: Object) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            apply_patch(target[key], value)
        else:
            target[key] = value


@dataclass
class ApiServer:
    """Objects by kind and name, with versions; ``refuse`` maps a kind to the error that its creation meets."""

    objects: dict[tuple[Kind, str], Object] = field(default_factory=dict)
    refuse: dict[Kind, KubeError] = field(default_factory=dict)
    refuse_list: dict[Kind, KubeError] = field(default_factory=dict)
    listed: list[str] = field(default_factory=list)
    """Field selectors that were asked for."""
    writes: list[str] = field(default_factory=list)
    version: int = 1
    made_at: str = NOW_TEXT
    """When it makes objects, by its own clock."""
    pruned: tuple[str, ...] = ()
    """Fields of a status that the schema does not know."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        if (kind, name) not in self.objects:
            raise NotFoundError(f"{name} not found")
        return copy.deepcopy(self.objects[kind, name])

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        name = body["metadata"]["name"]
        if error := self.refuse.get(kind):
            raise error
        if (kind, name) in self.objects:
            raise AlreadyExistsError(f"{name} already exists")
        made = copy.deepcopy(body)
        made["metadata"]["uid"] = f"{name}-uid"
        made["metadata"].setdefault("namespace", namespace)
        made["metadata"].setdefault("resourceVersion", "1")
        made["metadata"].setdefault("creationTimestamp", self.made_at)
        self.objects[kind, name] = made
        self.writes.append(f"create {kind.plural} {name}" if kind != EVENTS else f"event {body['reason']}")
        return made

    async def list(self, kind: Kind, namespace: str, selector: str = "", *, fields: str = "") -> AsyncIterator[Object]:
        if error := self.refuse_list.get(kind):
            raise error
        if fields:
            self.listed.append(fields)
        uid = fields.removeprefix("regarding.uid=")
        for found_kind, name in list(self.objects):
            if found_kind == kind and uid in ("", self.objects[kind, name].get("regarding", {}).get("uid")):
                yield copy.deepcopy(self.objects[kind, name])

    async def patch(self, kind: Kind, namespace: str, name: str, body: Object, subresource: str = "") -> Object:
        if (kind, name) not in self.objects:
            raise NotFoundError(f"{name} not found")
        found = self.objects[kind, name]
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted is not None and wanted != found["metadata"]["resourceVersion"]:
            raise ConflictError("the object has been modified")
        before = copy.deepcopy(found)
        meta = {key: value for key, value in body.get("metadata", {}).items() if key not in ("resourceVersion", "uid")}
        apply_patch(found, {**body, "metadata": meta})
        for unknown in self.pruned:
            found.get("status", {}).pop(unknown, None)
        self.writes.append(f"patch {kind.plural} {name}")
        if found != before:
            # What changes nothing gets no new version.
            self.version += 1
            found["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(found)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, *, version: str | None = None) -> Object:
        if (kind, name) not in self.objects:
            raise NotFoundError(f"{name} not found")
        meta = self.objects[kind, name]["metadata"]
        if meta["uid"] != uid or version not in (None, meta["resourceVersion"]):
            raise ConflictError("the precondition does not hold")
        self.writes.append(f"delete {kind.plural} {name}")
        return self.objects.pop((kind, name))

    def put_run(self, **spec: Any) -> Object:
        raw: Object = {
            "apiVersion": API_VERSION,
            "metadata": {"namespace": KEY.namespace, "name": KEY.name, "uid": RUN_UID, "generation": 1,
                         "resourceVersion": "1", "creationTimestamp": NOW_TEXT},
            "spec": {**make_spec().model_dump(mode="json", exclude_none=True), **spec},
        }  # fmt: skip
        self.objects[RUNS, KEY.name] = raw
        return raw

    @property
    def status(self) -> Status:
        return parse_status(self.objects[RUNS, KEY.name])


class Operator:
    """A reconciler with everything around it; ``new_process`` forgets all that was not written."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.now = NOW
        self.policy = Policy()
        self.notifier_image = "operator"
        self.counted: list[tuple[str, str]] = []
        """Event and outcome of notifications."""
        self.authority = Authority(certificate="PEM")
        self.new_process()

    def new_process(self) -> None:
        self.runs, self.progress = Runs(), ProgressBook(interval_s=15, writes_per_s=5)
        children = self.children = Children(self.runs, SkippedObjects())
        platform = Platform(
            trainer_image="t", report_url="https://r/", policy=self.policy, notifier_image=self.notifier_image
        )
        self.reconciler = Reconciler(
            kube=self.server,  # type: ignore[arg-type]
            children=children,
            nodes=Nodes(kube=self.server, now=lambda: self.now),  # type: ignore[arg-type]
            runs=self.runs,
            progress=self.progress,
            events=EventPublisher(self.server, instance="op", now=lambda: self.now),  # type: ignore[arg-type]
            authority=self.authority,
            troubles=Troubles(kube=self.server, now=lambda: self.now),  # type: ignore[arg-type]
            errors=ApiErrors(now=lambda: self.now),
            notifier=Notifier(
                kube=self.server, children=children, platform=platform, now=lambda: self.now,  # type: ignore[arg-type]
            ),
            platform=platform,
            now=lambda: self.now,
            note_written=self._note_written,
        )  # fmt: skip

    def _note_written(self, key: Key, before: Status, after: Status) -> None:
        self.counted += [(one.event, one.state.lower()) for one in compare(before, after).notifications]

    async def step(self) -> float | None:
        return await self.reconciler.reconcile(KEY)

    async def settle(self) -> float | None:
        """Passes until there is nothing to do at once."""
        for _ in range(50):
            delay_s = await self.step()
            if delay_s != 0.0:
                return delay_s
        raise AssertionError(f"the passes never settle: {self.server.writes[-10:]}")
