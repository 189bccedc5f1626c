"""Kinds of values that several parts of the spec share."""

from typing import Annotated

from pydantic import Field, StringConstraints, WithJsonSchema

from llava_api.base import Strict
from llava_api.rules import rule, rules

QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"


RelativePath = Annotated[
    str,
    Field(
        max_length=1024,
        json_schema_extra=rules(
            rule(
                "!self.matches('^/|(^|/)[.][.](/|$)')",
                "must be a path relative to the source, without a leading / and without .. parts",
            )
        ),
    ),
]
"""A path below a source's folder; it cannot leave it."""


Quantity = Annotated[
    str,
    Field(coerce_numbers_to_str=True, pattern=QUANTITY_PATTERN, max_length=32),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN, "maxLength": 32, "minimum": 0,
            # Stands beside the pattern's bare refusal. Matching here would cost too much: CEL does not see maxLength.
            **rules(
                rule(
                    "type(self) == int || !(self.endsWith('B') || self.endsWith('b'))",
                    "must be a Kubernetes quantity, which has no B: 80Gi for 80 GiB, 80G for 80 GB",
                )
            ),
        }
    ),
]  # fmt: skip
"""A Kubernetes quantity: 500m, 4, 16Gi."""


ResourceName = Annotated[str, StringConstraints(min_length=1, max_length=63)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]


ObjectName = Annotated[
    str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
"""Name of an object of Kubernetes' whose kind allows dots."""


class Resources(Strict):
    """CPU, memory and other resources of a container, as Kubernetes has them."""

    requests: Annotated[
        dict[ResourceName, Quantity],
        Field(max_length=8, description="What the scheduler sets aside. What is missing here is taken from limits."),
    ] = {}
    limits: Annotated[
        dict[ResourceName, Quantity],
        Field(
            max_length=8, description="What the container may use at most. Memory missing here is taken from requests."
        ),
    ] = {}


def make_resources(cpu: str, memory: str) -> Resources:
    """Requests of CPU and memory, and the same memory as limit."""
    return Resources(requests={"cpu": cpu, "memory": memory}, limits={"memory": memory})


class SecretRef(Strict):
    """A Secret of the run's namespace with credentials."""

    name: Annotated[str, Field(min_length=1, max_length=253, description="Name of the Secret.")]
