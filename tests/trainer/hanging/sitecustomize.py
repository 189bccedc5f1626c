"""Read by Python at its start where this folder is on PYTHONPATH: one training process hangs inside backward.

``HANG_RANK`` says which one, ``HANG_AT`` in which of its backward passes.
"""

import os
import time

if os.environ.get("RANK", "") == os.environ["HANG_RANK"]:
    from deepspeed.runtime.engine import DeepSpeedEngine

    backward = DeepSpeedEngine.backward
    passes = iter(range(1, 1_000_000))

    def hang(grad: object) -> None:
        time.sleep(3600)

    def backward_that_hangs(self, loss, *arguments, **settings):
        if next(passes) == int(os.environ["HANG_AT"]):
            loss.register_hook(hang)
        return backward(self, loss, *arguments, **settings)

    DeepSpeedEngine.backward = backward_that_hangs
