"""The run's own volume claim."""

from llava_api.constants import LABEL_RUN_UID
from llava_api.names import volume_claim_name
from llava_operator.build.common import build_labels, build_metadata
from llava_operator.kube.objects import Object
from llava_operator.run import Run


def build_volume_claim(run: Run) -> Object:
    """The claim that holds everything a run makes.

    Its label says whose it is. Kubernetes deletes it with the run unless it is always to be retained: with OnSuccess it
    has an owner until the run has succeeded (``acting.deletion``).
    """
    storage, artifacts = run.spec.storage, run.status.artifacts
    # What was committed to, and by which the run's size is judged: the spec may have been resized since.
    modes = (artifacts and artifacts.access_modes) or storage.modes_for(run.spec.most_writers)
    spec: Object = {
        "accessModes": list(modes),
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name is not None:
        spec["storageClassName"] = storage.storage_class_name
    metadata = build_metadata(run, volume_claim_name(run.key.name), {**build_labels(run), LABEL_RUN_UID: run.uid})
    if storage.retain == "Always":
        del metadata["ownerReferences"]
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
