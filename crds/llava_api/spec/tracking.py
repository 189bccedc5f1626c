"""Who else is told the curve of training."""

from typing import Annotated

from pydantic import Field

from llava_api.base import Strict


class TensorBoard(Strict):
    """Event files on the run's volume. There is nothing to set."""


class Tracking(Strict):
    """Experiment trackers that are told the curve while it trains. None of them holds training up or ends it."""

    tensorboard: Annotated[
        TensorBoard | None,
        Field(
            description="Write TensorBoard's event files to tensorboard/ on the run's volume (tensorboard-align/ in "
            "phase 1): `tensorboard: {}`. While it trains they are in the attempt's folder. Left out: none."
        ),
    ] = None
