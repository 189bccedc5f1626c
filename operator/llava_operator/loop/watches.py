"""kopf's part: watch streams whose events put a run's key on the queue.

Only ``on.event`` handlers. Timers, daemons and change handlers would put a finalizer on every run, and with the
operator down no run could be deleted; an index keeps objects whose deletion was missed. kopf writes nothing.
"""

from typing import Any

import kopf

from llava_api.constants import GROUP, PLURAL, VERSION
from llava_operator.cache.children import Children
from llava_operator.cache.runs import Runs
from llava_operator.kube.client import FIRST_CHUNK
from llava_operator.kube.kinds import CHILD_SELECTOR
from llava_operator.kube.objects import Key
from llava_operator.loop.backoffs import EndlessBackoffs
from llava_operator.loop.sessions import WatchSessions
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.settings import Settings


def build_registry(
    queue: WorkQueue[Key], runs: Runs, children: Children, sessions: WatchSessions
) -> kopf.OperatorRegistry:
    """Handlers and credentials of the watch streams."""
    registry = kopf.OperatorRegistry()
    # The SmartOperatorRegistry would look for client libraries and import them whole.
    kopf.on.login(registry=registry, id="service-account")(sessions.login_with_service_account)
    kopf.on.login(registry=registry, id="kubeconfig")(sessions.login_with_kubeconfig)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def note_run(event: Any, **_: Any) -> None:
        queue.add(runs.note(event["object"], deleted=event["type"] == "DELETED"))

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    async def note_job(event: Any, **_: Any) -> None:
        if run := children.note_job(event["object"], deleted=event["type"] == "DELETED"):
            queue.add(run)

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def note_pod(event: Any, **_: Any) -> None:
        if run := children.note_pod(event["object"], deleted=event["type"] == "DELETED"):
            queue.add(run)

    return registry


def build_kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """Kopf as a plain watcher: alone, silent, and without a wish to know what else is in the cluster."""
    made = kopf.OperatorSettings()
    made.peering.standalone = True
    made.posting.enabled = False
    # Watching CRDs and namespaces would need rights on the whole cluster.
    made.scanning.disabled = True
    made.process.ultimate_exiting_timeout = None
    made.networking.request_timeout = settings.request_timeout_seconds
    made.networking.error_backoffs = EndlessBackoffs()
    made.watching.server_timeout = settings.watch_timeout_seconds
    made.watching.inactivity_timeout = settings.watch_inactivity_seconds
    # Of objects that may take 1.5 MB each.
    made.watching.chunk_size = FIRST_CHUNK
    made.watching.label_selectors["batch", "v1", "jobs"] = CHILD_SELECTOR
    made.watching.label_selectors["", "v1", "pods"] = CHILD_SELECTOR
    # Handlers end at once: a worker need not stay for the next event of the same object.
    made.queueing.idle_timeout = 0.5
    return made
