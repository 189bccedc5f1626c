"""The LlavaFineTune as the API server holds it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from llava_api.base import Lenient
from llava_api.constants import API_VERSION, KIND, Condition
from llava_api.failures import Reason
from llava_api.names import MAX_RUN_NAME
from llava_api.rules import rule, rules, unchanged
from llava_api.spec import Spec
from llava_api.status import Status


class Metadata(Lenient):
    """The part of ObjectMeta that the operator reads."""

    name: str
    namespace: str
    uid: str
    resource_version: str
    generation: int = 1
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class LlavaFineTune(Lenient):
    """A fine-tuning run of a LLaVA v1.5 model: prepare, train, merge, evaluate. Short name: lft."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"size(self.metadata.name) <= {MAX_RUN_NAME}",
                f"metadata.name may have at most {MAX_RUN_NAME} characters: names of Jobs and pods are made from it "
                "and may have 63; choose a shorter name",
            ),
            rule(
                "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "metadata.name must begin with a letter and hold only lower-case letters, digits and '-': a Service is "
                "named after it; choose another name",
            ),
            # The volume is made with the first attempt; what it was made with stands in the status.
            rule(
                "self.spec.workers.replicas == 1 || !has(self.status) || !has(self.status.artifacts) || "
                "!has(self.status.artifacts.accessModes) || size(self.status.artifacts.accessModes) == 0 || "
                "self.status.artifacts.accessModes.exists(mode, mode == 'ReadWriteMany')",
                "spec.workers.replicas must stay 1: the volume of this run is ReadWriteOnce, and pods on several nodes "
                "cannot all write to it; create another run with storage.accessModes [ReadWriteMany]",
                field=".spec.workers.replicas",
            ),
            rule(
                f"({unchanged('spec.storage.existingClaim')}) || (!has(oldSelf.spec.storage.existingClaim) && "
                f"has(self.status) && has(self.status.conditions) && self.status.conditions.exists(held, "
                f"held.type == '{Condition.SUSPENDED}' && held.status == 'True' && "
                f"held.reason == '{Reason.VOLUME_OF_EARLIER_RUN}'))",
                "spec.storage.existingClaim is fixed from creation, but for a run that is suspended as "
                f"{Reason.VOLUME_OF_EARLIER_RUN}: delete this LlavaFineTune or create another one with the claim",
                field=".spec.storage.existingClaim",
            ),
        )
    )

    api_version: Literal["finetune.llava.dev/v1alpha1"] = API_VERSION
    kind: Literal["LlavaFineTune"] = KIND
    metadata: Metadata
    spec: Annotated[Spec, Field(description="What to train, on what, and how. Most of it is fixed from creation.")]
    status: Annotated[Status, Field(description="What the operator has seen and done.")] = Status()
