"""How the tuned model is served from where it lies or will be published to: what a person would have to fill in. Pure.

What is made is what ``manifests/serving`` has, with the run's own names and addresses; a test holds the two together.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from llava_api.constants import MODELCAR_SUFFIX
from llava_api.names import volume_claim_name
from llava_api.run_config import RunConfig
from llava_api.spec import Publish
from llava_api.text import show
from llava_api.volume import claim_root

_INFERENCE_SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
  annotations: {{serving.kserve.io/deploymentMode: RawDeployment}}
spec:
  predictor:
    minReplicas: 1
    deploymentStrategy: {{type: Recreate}}
    model:
      modelFormat: {{name: vLLM}}
      runtime: llava-vllm
      storageUri: {address}
      resources:
        requests: {{cpu: "4", memory: 24Gi}}
        limits: {{memory: 32Gi, nvidia.com/gpu: "1"}}
"""
_CLAIM = "pvc://"
_HUB = "hf://"
_REGISTRY = "oci://"
_IMAGE_VOLUME = "oci+native://"
_UNKNOWN_CLAIM = "CLAIM"
"""On a claim that was there before, nothing tells the trainer what it is called."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One place that the model can be served from."""

    place: str
    """What it is, for a person."""
    inference_service: str
    """KServe's object, as YAML."""
    env: str = ""
    """What ``manifests/serving/vllm/serving.env`` has to hold; empty where it is no claim."""


def list_served(config: RunConfig) -> tuple[Served, ...]:
    """Places to serve the merged model from, destinations that it will be published to first."""
    destinations = _list_destinations(config.publish)
    return (
        *(_serve(config, address, f"{address}, once it is published") for address in destinations),
        _serve(config, _own_address(config), "The run's volume, while that is kept"),
    )


def _list_destinations(publish: Publish | None) -> Iterator[str]:
    if publish is not None and publish.what != "adapter":
        yield from (destination.address for destination in publish.destinations)


def _own_address(config: RunConfig) -> str:
    root = config.volume_root
    claim = claim_root(root)
    name = volume_claim_name(config.run.name) if claim is None else _UNKNOWN_CLAIM
    return f"{_CLAIM}{name}/{config.volume.merged_dir.relative_to(claim or root).as_posix()}"


def _serve(config: RunConfig, address: str, place: str) -> Served:
    # JSON's strings are YAML's: whatever a name holds, it stays one value on one line.
    name, uri = json.dumps(config.run.name), json.dumps(_to_storage_uri(address))
    made = _INFERENCE_SERVICE.format(name=name, address=uri)
    if not address.startswith(_CLAIM):
        return Served(place=place, inference_service=made)
    claim, _, folder = address.removeprefix(_CLAIM).partition("/")
    env = f"CLAIM={show(claim)}\nMODEL_FOLDER={show(folder)}\nMODEL_NAME={show(config.run.name)}\n"
    return Served(place=place, inference_service=made, env=env)


def _to_storage_uri(address: str) -> str:
    """The address in KServe's words.

    It has the hub's branch behind a colon. Of what is in a registry it mounts the image, which has a tag of its own;
    its plain oci:// would run a shell in that, and there is none (docs/publishing.md).
    """
    if address.startswith(_HUB):
        return address.replace("@", ":")
    if address.startswith(_REGISTRY):
        return f"{_IMAGE_VOLUME}{address.removeprefix(_REGISTRY)}{MODELCAR_SUFFIX}"
    return address
