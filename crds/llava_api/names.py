"""Names of a run's children, and the length that they leave for the run's own name.

Children are created by POST under these names and nothing else, so that creating one twice is impossible.
"""

import hashlib

from llava_api.constants import STAGES, TRAINING_STAGES, StageName

MAX_DNS_LABEL = 63
MAX_REPLICAS = 512
MAX_SHARDS = 32
"""Most pods that evaluate."""
MAX_ATTEMPTS = 9999


def volume_claim_name(run: str) -> str:
    """Name of the claim that holds everything a run makes."""
    return f"{run}-run"


def job_name(run: str, stage: StageName, attempt: int) -> str:
    """Name of a stage's Job, and of the ConfigMap with its run configuration."""
    return f"{run}-{stage}-{attempt}"


def rendezvous_service_name(run: str, stage: StageName) -> str:
    """Name of the headless Service through which the pods of align or train meet, and of their NetworkPolicy."""
    return f"{run}-{stage}"


def report_ca_name(run: str) -> str:
    """Name of the ConfigMap with the certificate authority of the reporting endpoint."""
    return f"{run}-report-ca"


def notification_job_name(run: str, event_id: str, notification: str) -> str:
    """Name of the Job that tells one receiver of one event."""
    digest = hashlib.sha256(f"{event_id}/{notification}".encode()).hexdigest()
    return f"{run}-notify-{digest[:10]}"


def pod_hostname(run: str, stage: StageName, attempt: int, index: int) -> str:
    """Hostname that Kubernetes gives pod ``index`` of an Indexed Job."""
    return f"{job_name(run, stage, attempt)}-{index}"


MAX_RUN_NAME = MAX_DNS_LABEL - max(
    len(volume_claim_name("")),
    len(report_ca_name("")),
    len(notification_job_name("", "", "")),
    *(len(rendezvous_service_name("", stage)) for stage in TRAINING_STAGES),
    *(len(pod_hostname("", stage, MAX_ATTEMPTS, MAX_REPLICAS - 1)) for stage in STAGES),
)
"""Longest name a run may have: every child's name and hostname stays a DNS label (63 characters)."""
