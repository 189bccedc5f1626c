"""The one table of failures: what is observed, the reason, whether another attempt follows and counts, and what to do.

A stage ends with one of these exit codes; the operator turns it, or what Kubernetes says, into ``status.failure`` and
into the reason of a condition. Codes 1 and 2 (Python, argparse), 126 to 165 (shells and signals) are left alone, so
that ours are never mistaken for those. ``docs/failures.md`` is made from here, with the test that causes each row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from llava_api.reasons import Reason

__all__ = [
    "BY_EXIT_CODE",
    "BY_REASON",
    "DISRUPTIONS",
    "FAILURES",
    "FINAL_EXIT_CODES",
    "Failure",
    "Reason",
    "exit_code_of",
]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One row of the table."""

    reason: Reason
    observed: str
    """What has happened, and by what it is known (an exit code of the trainer is told by ``exit_code``)."""
    exit_code: int | None = None
    """Exit code of the stage's container; None where only the operator can tell."""
    retryable: bool = False
    """Whether another attempt follows by itself, since it may end otherwise."""
    retried_if: str = ""
    """When another attempt follows all the same, otherwise than the one before."""
    counts: bool = True
    """Whether it is a failure of the run's own, which counts against ``training.maxRestarts``."""
    first_is_free: bool = False
    """Whether it counts from the second one of a run on."""
    waits: bool = False
    """Whether no attempt ends by it: the run waits until it passes, or gets over it by itself."""
    hint: str
    """What the person can do, in one sentence."""
    test: str = ""
    """The test that causes it for real: file and function, as pytest is told."""


_STAGES = "tests/trainer/test_failures.py::"
_TRAINING = "tests/trainer/test_train_stage.py::"
_OUTLIVED = "tests/trainer/test_outlived.py::"
_OPERATOR = "tests/cluster/test_operator.py::"
_WAITING = "tests/cluster/test_waiting.py::"
_FAILING = "tests/cluster/test_failures.py::"
_GANGS = "tests/cluster/test_gangs.py::"

_BY_A_STAGE: Final = (
    Failure(reason=Reason.INVALID_CONFIG, exit_code=64,
            observed="The stage refuses its configuration.",
            hint="Change the field that the message names; where it is none of the spec's, operator and trainer image "
                 "do not fit together: use the image of the operator's version.",
            test=_STAGES + "test_a_configuration_that_the_image_does_not_know"),
    Failure(reason=Reason.INVALID_DATA, exit_code=65,
            observed="The dataset, or a picture of it, is not what the spec says, or holds nothing to learn.",
            hint="Correct the entries named in the message and create the run again.",
            test=_STAGES + "test_bad_data"),
    Failure(reason=Reason.INVALID_MODEL, exit_code=66,
            observed="What spec.model names is no LLaVA v1.5 model, or a file of it is damaged or missing.",
            hint="spec.model must name a LLaVA v1.5 checkpoint with everything that belongs to it (config.json, "
                 "weights, tokenizer), or a Llama and a CLIP to join; the message says what is wrong with this one.",
            test=_STAGES + "test_a_model_that_is_none"),
    Failure(reason=Reason.LOSS_NOT_FINITE, exit_code=67,
            observed="The loss, or the norm of its gradient, is NaN or infinite.",
            hint="Lower spec.training.learningRate, or look for damaged samples in the dataset report.",
            test=_TRAINING + "test_the_exit_code_of_the_process_that_failed_is_handed_on"),
    Failure(reason=Reason.NOTHING_SUPERVISED, exit_code=68,
            observed="A whole global batch has no supervised token.",
            hint="Raise spec.training.maxLength, or look at the supervised tokens in the dataset report.",
            test=_STAGES + "test_no_supervised_tokens"),
    Failure(reason=Reason.OUT_OF_DEVICE_MEMORY, exit_code=69,
            retried_if="in training's first steps: with half of batch.perDevice and twice the accumulation, which "
                       "counts nothing",
            observed="CUDA out of memory.",
            hint="In training lower spec.training.batch.perDevice or maxLength, or switch gradientCheckpointing on; in "
                 "evaluation lower spec.evaluation.generation.maxNewTokens.",
            test=_STAGES + "test_cuda_out_of_memory"),
    Failure(reason=Reason.INTERNAL_ERROR, exit_code=70, retryable=True,
            observed="An error that nobody foresaw.",
            hint="The log's last lines show where; the whole log is on the run's volume under attempts/.",
            test=_STAGES + "test_an_error_that_nobody_foresaw"),
    Failure(reason=Reason.WORKER_KILLED, exit_code=71, retryable=True,
            observed="A training process was killed by a signal that nobody here sends.",
            hint="Often the node's out-of-memory killer: raise spec.workers.resources, or look at the node that the "
                 "message names.",
            test=_TRAINING + "test_a_process_killed_in_one_pod_ends_all_pods"),
    Failure(reason=Reason.RENDEZVOUS_FAILED, exit_code=72, retryable=True,
            observed="No answer from a rank: the training pods did not find or lost each other.",
            hint="Check that all were scheduled and that the network lets them talk (NetworkPolicies, DNS).",
            test=_STAGES + "test_no_answer_from_a_rank"),
    Failure(reason=Reason.MERGE_MISMATCH, exit_code=73,
            observed="The merged model does not compute what base and adapter compute, or the adapter is damaged.",
            hint="Please report this as a bug, with the log.",
            test=_STAGES + "test_an_adapter_that_does_not_belong_to_the_model"),
    Failure(reason=Reason.STORAGE_FULL, exit_code=74,
            observed="The run's volume is full, or is going to be by the plan (the operator's word).",
            hint="Raise spec.storage.size.",
            test=_STAGES + "test_a_full_volume"),
    Failure(reason=Reason.INTERRUPTED, exit_code=75, retryable=True, first_is_free=True,
            observed="SIGTERM, and Kubernetes does not say why.",
            hint="Nothing needs to be done once; if it comes again, look for who ends the pods.",
            test=_TRAINING + "test_a_pod_asked_to_stop_saves_and_stops_all_pods"),
    Failure(reason=Reason.CHECKPOINT_MISMATCH, exit_code=76,
            observed="The checkpoint on the volume was made by another training than this run describes.",
            hint="The message says what differs: set it back, or create another run.",
            test=_STAGES + "test_a_checkpoint_of_another_training"),
    Failure(reason=Reason.ZERO_GRADIENT, exit_code=77,
            observed="Nothing that is trained receives a gradient.",
            hint="Please report this as a bug, with the log.",
            test=_STAGES + "test_no_gradient"),
    Failure(reason=Reason.ADAPTER_UNCHANGED, exit_code=78,
            observed="Training ended without having changed what it trains.",
            hint="Raise spec.training.learningRate or epochs.",
            test=_STAGES + "test_training_that_changes_nothing"),
    Failure(reason=Reason.WORKER_STALLED, exit_code=79, retryable=True,
            observed="A training process has not gone on for much longer than its steps take.",
            hint="Its stack is in the log of its rank under attempts/; if it is always the same node, look at its GPU "
                 "and its mounts.",
            test=_TRAINING + "test_a_process_that_hangs_in_backward_is_named_whoever_says_so_first"),
    Failure(reason=Reason.SOURCE_UNAVAILABLE, exit_code=80, retryable=True,
            observed="A model or dataset could not be fetched, and the server may answer otherwise later.",
            hint="Look at the address, the network and spec.download.",
            test=_STAGES + "test_a_source_that_does_not_answer"),
    Failure(reason=Reason.SOURCE_REFUSED, exit_code=81,
            observed="A model or dataset does not exist, may not be read, or is not what it should be.",
            hint="Correct the source or its secretRef.",
            test=_STAGES + "test_a_source_that_does_not_exist"),
    Failure(reason=Reason.UNSUPPORTED_DEVICE, exit_code=82,
            observed="The GPU or its node cannot do what the run asks for, or there is none.",
            hint="The message names what to change: a setting, the node, or spec.scheduling.nodeSelector.",
            test=_STAGES + "test_a_machine_without_a_gpu"),
    Failure(reason=Reason.OUT_OF_MEMORY, exit_code=83, retryable=True,
            observed="The pod's memory did not suffice: the container went over its limit (OOMKilled, the operator's "
                     "word), or the node has no more.",
            hint="Raise the stage's resources.limits.memory, or take larger nodes.",
            test=_STAGES + "test_out_of_host_memory"),
    Failure(reason=Reason.STORAGE_UNWRITABLE, exit_code=84, retryable=True,
            observed="The run's volume cannot be written: read-only, broken, or gone (EROFS, EIO, ESTALE).",
            hint="Look at its PersistentVolume, its access mode, and the node that mounts it.",
            test=_STAGES + "test_a_volume_that_is_mounted_read_only"),
    Failure(reason=Reason.ATTEMPT_USED, exit_code=85, retryable=True, counts=False,
            observed="The attempt's folder on the volume belongs to a pod that ran before: its Job was suspended and "
                     "started again, say.",
            hint="Nothing needs to be done: the next attempt goes on from what that pod has left.",
            test=_OUTLIVED + "test_the_same_job_started_again_leaves_the_attempt_to_its_first_pods"),
    Failure(reason=Reason.SUPERSEDED, exit_code=86, retryable=True, counts=False,
            observed="The pod outlived its attempt, on a node that was cut off, say, and has ended by itself.",
            hint="Nothing needs to be done: a later attempt does the work.",
            test=_OUTLIVED + "test_a_training_that_the_operator_has_given_up_ends_by_itself"),
    Failure(reason=Reason.DRIVER_TOO_OLD, exit_code=87,
            observed="The node's NVIDIA driver is older than the image's CUDA needs.",
            hint="Update it to the version that the message names, or choose nodes that have it by "
                 "spec.scheduling.nodeSelector.",
            test=_STAGES + "test_a_driver_that_is_too_old"),
    Failure(reason=Reason.NCCL_FAILED, exit_code=88, retryable=True,
            observed="NCCL, over which GPUs talk to each other, failed.",
            hint="The message has NCCL's words; with NCCL_DEBUG=INFO in the image's environment the log says more, "
                 "often about the network's interfaces or /dev/shm.",
            test=_STAGES + "test_nccl_fails"),
    Failure(reason=Reason.DESTINATION_UNAVAILABLE, exit_code=89, retryable=True,
            observed="A destination could not be published to, and may answer otherwise later; it shows a whole model "
                     "or nothing that loads.",
            hint="Look at the address, the network and spec.download; the next attempt goes on with what was sent.",
            test=_STAGES + "test_a_destination_that_does_not_answer"),
    Failure(reason=Reason.DESTINATION_REFUSED, exit_code=90,
            observed="A destination holds something else, does not exist, or may not be written.",
            hint="Correct spec.publish, or make room there, and raise spec.retry: nothing is trained again.",
            test=_STAGES + "test_a_destination_that_holds_another_model"),
    Failure(reason=Reason.RESULT_DAMAGED, exit_code=91,
            observed="A file that was to be published is not what it was when it was made.",
            hint="Look at the volume; nothing damaged was published.",
            test=_STAGES + "test_a_result_that_is_damaged"),
)  # fmt: skip

_BY_THE_OPERATOR: Final = (
    Failure(reason=Reason.NOT_ALLOWED,
            observed="The installation's policy does not allow what the spec asks for.",
            hint="Change what the message names, or ask whoever installed the operator to allow it.",
            test="tests/cluster/test_policy.py::test_operator_refuses_the_same_without_an_admission_policy"),
    Failure(reason=Reason.PLAN_DOES_NOT_FIT,
            observed="By the memory plan, training fits no GPU or no pod that the run may use.",
            hint="Choose one of the configurations that the message names, or GPUs or pods with more memory.",
            test=_OPERATOR + "test_a_plan_that_fits_no_gpu_ends_the_run_before_training"),
    Failure(reason=Reason.POD_FAILED, retryable=True,
            observed="A pod failed, and neither the stage nor Kubernetes says why.",
            hint="Look at the log's last lines and at the pod's events.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.EVICTED, retryable=True,
            observed="The pod's reason is Evicted without the condition DisruptionTarget: it went over its own limits "
                     "of ephemeral storage or of an emptyDir.",
            hint="Raise the stage's resources.limits.ephemeral-storage.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.PREEMPTED, retryable=True, counts=False,
            observed="DisruptionTarget, PreemptionByScheduler: pods of a higher priority took the place.",
            hint="Give the run a higher spec.scheduling.priorityClassName if that should not happen.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.NODE_LOST, retryable=True, counts=False,
            observed="DisruptionTarget, DeletionByTaintManager, DeletionByPodGC: the node does not answer or is gone.",
            hint="Nothing needs to be done while other nodes have room; look at the node that the message names.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.DRAINED, retryable=True, counts=False,
            observed="DisruptionTarget, EvictionByEvictionAPI: the node is drained, or an autoscaler takes it away.",
            hint="Nothing needs to be done; annotations for the autoscaler keep a run in place that is moved often.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.POD_DISRUPTED, retryable=True, counts=False,
            observed="DisruptionTarget with another reason, like TerminationByKubelet: the node shuts down, or is "
                     "short of memory or disk for others.",
            hint="Nothing needs to be done while other nodes have room; requests that equal limits make it rarer.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.JOB_DELETED, retryable=True, first_is_free=True,
            observed="Someone deleted the attempt's Job.",
            hint="To stop a run, set spec.suspend or delete the run; its Jobs are made again.",
            test=_OPERATOR + "test_deleted_job_is_made_up_for_by_another_attempt"),
    Failure(reason=Reason.POD_DELETED, retryable=True, first_is_free=True,
            observed="Someone deleted a pod of the attempt: it got a deletion without the condition DisruptionTarget.",
            hint="To stop a run, set spec.suspend or delete the run; its pods are made again.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.QUEUE_EVICTED, retryable=True, counts=False,
            observed="The queue suspended the attempt's Job after it had started.",
            hint="Nothing needs to be done: the run is queued again and goes on from its checkpoint.",
            test=_GANGS + "test_a_queue_admits_evicts_and_admits_again"),
    Failure(reason=Reason.GANG_NOT_SCHEDULED, retryable=True, counts=False,
            observed="Some pods of the attempt held GPUs while others found none, for longer than is allowed.",
            hint="It gave its GPUs back and tries again later; free as many GPUs at a time as the run asks for, or "
                 "lower spec.workers.",
            test=_GANGS + "test_two_gangs_that_each_hold_half_of_what_both_need_both_finish"),
    Failure(reason=Reason.REPORTS_STAND_STILL, retryable=True,
            observed="Training reports the same step again and again, for half an hour and 20 steps' time at least, "
                     "and does not end by itself.",
            hint="Look at the logs of its ranks under attempts/, and at the node that the message names.",
            test=_FAILING + "test_the_same_step_for_longer_than_can_be"),
    Failure(reason=Reason.SUSPENDED, retryable=True, counts=False,
            observed="spec.suspend is true.",
            hint="Set spec.suspend to false, and the run goes on from its checkpoint.",
            test=_OPERATOR + "test_suspend_frees_everything_and_goes_on_at_another_size"),
    Failure(reason=Reason.RESULT_LOST, retryable=True, counts=False,
            observed="The stage ended well, but its pod was gone before its result was read.",
            hint="Nothing needs to be done: the next attempt finds the result on the volume.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.DEADLINE_EXCEEDED,
            observed="The run took longer than spec.activeDeadlineSeconds, without suspended and queued time.",
            hint="Raise spec.activeDeadlineSeconds and then spec.retry, and the run goes on from its checkpoint.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.NO_PROGRESS,
            observed="Three attempts in a row that count ended at no later step.",
            hint="Remove the cause that the last attempts name, and raise spec.retry.",
            test=_FAILING + "test_what_happens_to_a_run_has_its_reason_and_its_price"),
    Failure(reason=Reason.NAME_CONFLICT,
            observed="An object of somebody else has the name of one of the run's children (409 to a POST).",
            hint="Delete the object that is in the way and raise spec.retry, or create the run under another name.",
            test=_OPERATOR + "test_foreign_object_of_a_childs_name_fails_the_run"),
    Failure(reason=Reason.REJECTED,
            observed="The API server refuses a child of the run for good (422 whose causes all name a field).",
            hint="Change what the message names.",
            test=_OPERATOR + "test_child_that_the_api_server_refuses_fails_the_run"),
)  # fmt: skip

_WAITED_FOR: Final = (
    Failure(reason=Reason.IMAGE_CANNOT_BE_PULLED, waits=True, counts=False,
            observed="A container waits with ErrImagePull, ImagePullBackOff or InvalidImageName.",
            hint="Correct spec.image.reference or its pull Secrets, or look at the registry.",
            test=_WAITING + "test_image_that_cannot_be_pulled"),
    Failure(reason=Reason.UNSCHEDULABLE, waits=True, counts=False,
            observed="PodScheduled is False with Unschedulable; the message says which resource is short.",
            hint="Free or add what is short, lower the stage's resources, or change spec.scheduling.",
            test=_WAITING + "test_claim_that_is_not_there_and_gpus_that_are_short"),
    Failure(reason=Reason.QUOTA_EXCEEDED, waits=True, counts=False,
            observed="A ResourceQuota refuses a child of the run, or the Job's pods (403, FailedCreate).",
            hint="Raise the quota that the message names, or lower what the run asks for.",
            test=_WAITING + "test_what_only_events_tell"),
    Failure(reason=Reason.MISSING_OBJECT, waits=True, counts=False,
            observed="A Secret, ConfigMap, claim or StorageClass that the spec names is not there.",
            hint="Create it, or correct the field that the message names.",
            test=_WAITING + "test_claim_that_is_not_there_and_gpus_that_are_short"),
    Failure(reason=Reason.VOLUME_NOT_MOUNTED, waits=True, counts=False,
            observed="Events say FailedMount, FailedAttachVolume, ProvisioningFailed or FailedBinding.",
            hint="Look at the claim and the node that the message names: a volume that is ReadWriteOnce may be held by "
                 "another node.",
            test=_WAITING + "test_what_only_events_tell"),
    Failure(reason=Reason.REFUSED, waits=True, counts=False,
            observed="An admission webhook or policy refuses a child of the run or its pods, or the webhook does not "
                     "answer.",
            hint="Ask whoever runs the webhook or policy that the message names, or change what it objects to.",
            test="tests/cluster/test_refusals.py::test_webhook_that_denies_is_waited_for"),
    Failure(reason=Reason.VOLUME_OF_EARLIER_RUN, waits=True, counts=False,
            observed="The run's claim carries the UID of an earlier run.",
            hint="Delete that claim, or take it over by naming it in spec.storage.existingClaim.",
            test="tests/cluster/test_life.py::test_timer_leaves_a_volume_that_no_namesake_takes_in_silence"),
    Failure(reason=Reason.QUEUED, waits=True, counts=False,
            observed="The attempt's Job waits in the queue that spec.scheduling.queueName names.",
            hint="Nothing needs to be done; the queue says what it waits for.",
            test=_WAITING + "test_queue_that_holds_the_job_back"),
    Failure(reason=Reason.CONTAINER_NOT_STARTED, waits=True, counts=False,
            observed="The node cannot make or start the container (CreateContainerConfigError and others).",
            hint="The message has the node's words; kubectl describe pod says more.",
            test=_WAITING + "test_container_that_cannot_be_started"),
    Failure(reason=Reason.API_ERROR, waits=True, counts=False,
            observed="The API server answers the operator's requests for the run with errors, again and again.",
            hint="Look at the API server, and at what stands before it; the run goes on by itself.",
            test="tests/cluster/test_api_errors.py::test_errors_that_the_api_server_keeps_answering"),
    Failure(reason=Reason.CHECKPOINT_DAMAGED, waits=True, counts=False,
            observed="A checkpoint is damaged or cannot be read: training goes on from the one before.",
            hint="Nothing needs to be done once; if it comes again, look at the volume.",
            test="tests/trainer/test_failures.py::test_a_damaged_checkpoint_is_passed_over"),
)  # fmt: skip

FAILURES: Final[tuple[Failure, ...]] = _BY_A_STAGE + _BY_THE_OPERATOR + _WAITED_FOR

BY_REASON: Final[Mapping[Reason, Failure]] = MappingProxyType({failure.reason: failure for failure in FAILURES})
BY_EXIT_CODE: Final[Mapping[int, Failure]] = MappingProxyType(
    {failure.exit_code: failure for failure in FAILURES if failure.exit_code is not None}
)
FINAL_EXIT_CODES: Final[tuple[int, ...]] = tuple(
    sorted(code for code, failure in BY_EXIT_CODE.items() if not failure.retryable or not failure.counts)
)
"""Exit codes after which another pod of the same attempt would do no better: the failure is final, or it is the attempt
that does not count any more."""
DISRUPTIONS: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        "PreemptionByScheduler": Reason.PREEMPTED,
        "DeletionByTaintManager": Reason.NODE_LOST,
        "DeletionByPodGC": Reason.NODE_LOST,
        "EvictionByEvictionAPI": Reason.DRAINED,
        "TerminationByKubelet": Reason.POD_DISRUPTED,
    }
)
"""What a pod's condition DisruptionTarget gives as its reason; any other one is POD_DISRUPTED. None counts. From
https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions."""


def exit_code_of(reason: Reason) -> int:
    """Exit code with which a stage reports ``reason``.

    Raises:
        ValueError: the reason is one that only the operator can tell.
    """
    code = BY_REASON[reason].exit_code
    if code is None:
        raise ValueError(f"{reason} has no exit code: only the operator reports it")
    return code
