"""What a run has taken."""

from typing import Annotated

from pydantic import Field

from llava_api.base import Lenient
from llava_api.constants import StageName
from llava_api.status.values import Count


class Accounting(Lenient):
    """What a run has taken, over all attempts that are over."""

    gpu_seconds: Annotated[
        dict[StageName, Count],
        Field(
            max_length=8,
            description="GPUs times seconds that they were held, by stage; in evaluation those of all its pods, from "
            "the first one's begin to the last one's end.",
        ),
    ] = {}
    productive_seconds: Annotated[
        Count,
        Field(
            description="Seconds of attempts whose work was kept: up to the step that was gone on from; in evaluation "
            "whatever was answered."
        ),
    ] = 0
    idle_seconds: Annotated[Count, Field(description="Seconds between a failure and the retry after it.")] = 0
    lost_seconds: Annotated[
        Count, Field(description="Seconds of attempts whose work was done again, or for nothing.")
    ] = 0
    productive_gpu_seconds: Annotated[
        Count, Field(description="Those of gpuSeconds in which work was done that was kept.")
    ] = 0
    lost_gpu_seconds: Annotated[
        Count, Field(description="Those of gpuSeconds in which work was done that was done again, or for nothing.")
    ] = 0
    queued_seconds: Annotated[Count, Field(description="Seconds that attempts waited in a queue.")] = 0
    suspended_seconds: Annotated[Count, Field(description="Seconds that the run was suspended.")] = 0
    restarts_by_reason: Annotated[
        dict[Annotated[str, Field(max_length=63)], Count],
        Field(max_length=64, description="How many attempts ended for which reason, but for those that succeeded."),
    ] = {}
