"""Many runs as the operator has them in its cache: some that train, with all that may be told of one, and many that
have ended.
"""

from datetime import datetime, timedelta
from typing import Any

from llava_api.constants import GateOutcome, StageName
from llava_api.report import LOSSES_KEPT
from llava_api.status import Artifacts, AttemptSettings, GateStatus, Plan, Progress, PublishedStatus, Status
from llava_operator.cache.runs import Runs
from llava_operator.clock import to_time
from llava_operator.deciding.accounting import account_for
from llava_operator.deciding.moves import change_newest
from llava_operator.deciding.status import dump_status
from llava_operator.kube.objects import Object
from llava_operator.run import stage_of
from tests.controller.makers import NOW, begun, commit, failed, job_end, make_job, make_pod, see, walk

TRAIN = StageName.TRAIN
GIB = 1024**3
PLAN = Plan(
    device_memory="61.3Gi", device_memory_available="79.6Gi", pod_memory="24.3Gi", per_device_batch=4, accumulation=2,
    total_steps=734,
)  # fmt: skip

GATE = GateStatus(
    outcome=GateOutcome.PASSED, metric="exact_match", gain=0.95, low=0.8, high=0.97, limit=0.0, samples=40, groups=20
)


def training() -> Status:
    """A run that trains, after a restart, on eight GPUs: everything is there that may be told of a run under way."""
    status = begun(TRAIN)
    status = change_newest(status, stage_of(status, TRAIN), settings=AttemptSettings(replicas=2, gpus=4, queue="gpus"))
    pods = (make_pod(phase="Running", started=True),)
    status = commit(see(status, job=make_job(status), pods=pods))
    ended = commit(see(status, job=make_job(status, failed=job_end()), pods=(failed(exit_code=71),),
                       now=NOW + timedelta(minutes=10)))  # fmt: skip
    status = commit(see(ended, now=NOW + timedelta(hours=1)))
    status = commit(see(status, job=make_job(status), pods=pods, now=NOW + timedelta(hours=1)))
    status = change_newest(status, stage_of(status, TRAIN), settings=AttemptSettings(replicas=2, gpus=4, queue="gpus"))
    stage = stage_of(status, TRAIN).model_copy(update={"reason": "Unschedulable", "reason_time": to_time(NOW)})
    stages = tuple(stage if one.name is TRAIN else one for one in status.stages)
    return status.model_copy(update={"stages": stages, "progress": report(), "plan": PLAN})


def report(**changes: Any) -> Progress:
    """A report of its newest attempt that leaves nothing out."""
    known: dict[str, Any] = {
        "stage": TRAIN, "attempt": 2, "pod_uid": "u", "step": 120, "total_steps": 734, "eta_seconds": 2460,
        "epoch": 0.16, "loss": 1.5, "learning_rate": 2e-4, "grad_norm": 0.75, "validation_loss": 1.6,
        "validation_exact": 0.4, "validation_step": 40,
        "lowest_validation_loss": 1.55, "best_step": 40, "samples_per_second": 12.5,
        "tokens_per_second": 8000.0, "data_wait_ratio": 0.02, "mfu": 0.45, "validating_samples": 12,
        "checkpoint_step": 100, "checkpoint_time": to_time(NOW), "resumed_step": 100,
        "peak_gpu_memory_bytes": 60 * GIB, "volume_free_bytes": 150 * GIB, "volume_size_bytes": 200 * GIB,
        "losses": (1.5,) * LOSSES_KEPT, "last_update_time": to_time(NOW), "message": "trains",
    }  # fmt: skip
    return Progress.model_validate({**known, **changes})


def ended() -> Status:
    """A run that went through all stages, after one restart."""
    status = walk({})
    newest = stage_of(status, TRAIN).newest
    assert newest is not None
    lost = newest.model_copy(update={"because": "WorkerKilled"})
    status = account_for(status, TRAIN, lost, None)
    assert status.evaluation is not None
    evaluation = status.evaluation.model_copy(update={"gate": GATE})
    published = PublishedStatus(address="s3://models/invoices", what="merged", digest="sha256:ab", size_bytes=14 * GIB)
    artifacts = (status.artifacts or Artifacts()).model_copy(update={"published": (published,)})
    update = {
        "progress": report(stage=StageName.EVALUATE, attempt=1), "plan": PLAN, "evaluation": evaluation,
        "artifacts": artifacts,
    }  # fmt: skip
    return status.model_copy(update=update)


def crowd(*, num_training: int, num_ended: int, ended_at: datetime) -> Runs:
    """A cache of so many runs, read as the API server has them."""
    runs = Runs()
    over = ended().model_copy(update={"completion_time": to_time(ended_at)})
    for status, kind, number in ((training(), "training", num_training), (over, "ended", num_ended)):
        said = dump_status(status)
        for index in range(number):
            runs.note(make_object(f"team-{index % 20}", f"{kind}-{index:05}", said))
    return runs


def make_object(namespace: str, name: str, status: Object, **meta: Any) -> Object:
    """A run as the API server has it."""
    metadata = {
        "namespace": namespace, "name": name, "uid": f"{namespace}-{name}", "creationTimestamp": to_time(NOW),
        "labels": {"team": namespace}, **meta,
    }  # fmt: skip
    return {"metadata": metadata, "spec": {"training": {"method": "lora"}}, "status": status}
