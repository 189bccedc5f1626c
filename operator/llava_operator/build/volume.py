"""The run's own volume claim."""

from llava_api.names import volume_claim_name
from llava_operator.build.common import build_labels, build_metadata
from llava_operator.kube.objects import Object
from llava_operator.run import Run


def build_volume_claim(run: Run) -> Object:
    """The claim that holds everything a run makes."""
    storage = run.spec.storage
    spec: Object = {
        "accessModes": list(storage.modes_for(run.spec.workers.replicas)),
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name is not None:
        spec["storageClassName"] = storage.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": build_metadata(run, volume_claim_name(run.key.name), build_labels(run)),
        "spec": spec,
    }
