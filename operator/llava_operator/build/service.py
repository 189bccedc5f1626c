"""The headless Service through which training pods find each other."""

from llava_api.constants import LABEL_RUN, LABEL_STAGE, RENDEZVOUS_PORT, StageName
from llava_api.names import pod_hostname, rendezvous_service_name
from llava_operator.build.common import build_labels, build_metadata
from llava_operator.run import Run
from llava_operator.wire import Object


def rendezvous_host(run: Run, attempt: int) -> str:
    """DNS name of the first training pod."""
    first = pod_hostname(run.key.name, StageName.TRAIN, attempt, 0)
    return f"{first}.{rendezvous_service_name(run.key.name)}.{run.key.namespace}.svc"


def build_rendezvous_service(run: Run) -> Object:
    """The Service. It selects the training pods of every attempt: their hostnames tell attempts apart."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": build_metadata(run, rendezvous_service_name(run.key.name), build_labels(run, StageName.TRAIN)),
        "spec": {
            "clusterIP": "None",
            # Pods look for each other before any of them could be called ready.
            "publishNotReadyAddresses": True,
            "selector": {LABEL_RUN: run.key.name, LABEL_STAGE: str(StageName.TRAIN)},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "targetPort": RENDEZVOUS_PORT}],
        },
    }
