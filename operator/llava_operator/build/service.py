"""The headless Services through which the pods of align, and those of train, find each other."""

from llava_api.constants import LABEL_RUN, LABEL_STAGE, RENDEZVOUS_PORT, StageName
from llava_api.names import pod_hostname, rendezvous_service_name
from llava_operator.build.common import build_labels, build_metadata
from llava_operator.kube.objects import Object
from llava_operator.run import Attempt, Run


def rendezvous_host(attempt: Attempt) -> str:
    """DNS name of the first training pod; of the train stage for stages that do not train."""
    run, gang = attempt.run, attempt.stage.name if attempt.stage.is_gang else StageName.TRAIN
    first = pod_hostname(run.key.name, gang, attempt.number, 0)
    return f"{first}.{rendezvous_service_name(run.key.name, gang)}.{run.key.namespace}.svc"


def build_rendezvous_service(run: Run, stage: StageName) -> Object:
    """The Service of one stage: a selector cannot name two. It selects the pods of every attempt of that stage.

    Their hostnames tell attempts apart.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": build_metadata(run, rendezvous_service_name(run.key.name, stage), build_labels(run, stage)),
        "spec": {
            "clusterIP": "None",
            # Pods look for each other before any of them could be called ready.
            "publishNotReadyAddresses": True,
            "selector": {LABEL_RUN: run.key.name, LABEL_STAGE: str(stage)},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT, "targetPort": RENDEZVOUS_PORT}],
        },
    }
