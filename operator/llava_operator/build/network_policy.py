"""Who may connect to the pods of align, and to those of train: each other, and nobody else.

torch's elastic agents, gloo and NCCL take what they are told by whoever reaches their ports, most of which are chosen
when training starts.
"""

from llava_api.constants import LABEL_RUN, LABEL_STAGE, StageName
from llava_api.names import rendezvous_service_name
from llava_operator.build.common import build_labels, build_metadata
from llava_operator.kube.objects import Object
from llava_operator.run import Run


def build_network_policy(run: Run, stage: StageName) -> Object:
    """The NetworkPolicy around the pods of one stage, of every attempt of it.

    What they connect to themselves is not touched: a policy of egress would have to know the cluster's DNS, the
    reporting endpoint and the storage. Nothing else connects to them.
    """
    pods = {"matchLabels": {LABEL_RUN: run.key.name, LABEL_STAGE: str(stage)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": build_metadata(run, rendezvous_service_name(run.key.name, stage), build_labels(run, stage)),
        "spec": {
            "podSelector": pods,
            "policyTypes": ["Ingress"],
            # Without a namespaceSelector: those of the run's own namespace.
            "ingress": [{"from": [{"podSelector": pods}]}],
        },
    }
