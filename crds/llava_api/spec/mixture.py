"""Further datasets that are learned from beside the run's own, against forgetting."""

from typing import Annotated

from pydantic import Field

from llava_api.base import Strict
from llava_api.schema import DESCRIBED_AS
from llava_api.spec.dataset import Dataset

MAX_MIXTURE = 8
MAX_SHARE = 0.99
"""Of all of them together: without an end, an epoch of the run's own dataset would have no end."""


class MixturePart(Strict):
    """One further dataset, and how much of training it is."""

    dataset: Annotated[
        Dataset,
        Field(
            description="Where it is and how it is read, as spec.dataset. Nothing of it is held out, validated or "
            "scored: validation.fraction is not read. What shows a picture, names a group or asks a question "
            "that spec.dataset holds out is left out of it, and counted.",
            json_schema_extra={DESCRIBED_AS: "spec.dataset"},
        ),
    ]
    share: Annotated[
        float,
        Field(
            gt=0,
            # Not MAX_SHARE: the API server writes bounds as whole numbers, and would ask for at most 0.
            lt=1,
            description="Share of an epoch's samples that come from it: 0.2 is every fifth. They are drawn without "
            "repetition, and each epoch goes on where the one before stopped; once all have been seen it begins anew, "
            "in another order. Of spec.dataset each epoch has every sample once.",
        ),
    ]
