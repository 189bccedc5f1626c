"""One of several processes that put a small model under the real engine and print what DeepSpeed allocates.

``python -m tests.trainer.memory_states METHOD:STAGE:DTYPE ...`` with torch's RANK, WORLD_SIZE and MASTER_* set. The
first process prints one JSON object a line: method, stage, bytes held between two passes, and at the peak of a later
micro-batch's backward pass.
"""

import gc
import json
import sys
from typing import Any

import torch

from llava_api.memory import Workload
from llava_api.spec import Zero
from llava_trainer.model.learning import group_parameters
from llava_trainer.training.engine import build_engine
from llava_trainer.training.processes import Processes, join
from tests.trainer.memory_shapes import make_shape
from tests.trainer.memory_trace import Ledger, Watching, build_module

LENGTH = 24
MODEL = make_shape(
    3, hidden=256, intermediate=768, heads=4, key_value_heads=4, vocabulary=1024, tower_layers=2, tower_hidden=64,
    image_px=56,
)  # fmt: skip


def make_work(method: str, stage: int, number_bytes: int, world_size: int) -> Workload:
    return Workload(
        method=method, rows=1, length=LENGTH, pictures=1, supervised=LENGTH - 1, rank=64, dropout=0.0, masked=False,
        number_bytes=number_bytes, zero_stage=stage, world_size=world_size,
    )  # fmt: skip


def main() -> None:
    processes = join("cpu")
    for case in sys.argv[1:]:
        method, stage, number_bytes = case.split(":")
        work = make_work(method, int(stage), int(number_bytes), processes.world_size)
        measured = _measure(work, processes)
        if processes.is_first:
            sys.stdout.write(json.dumps({"case": case, **measured}) + "\n")
            sys.stdout.flush()
    torch.distributed.destroy_process_group()


def _measure(work: Workload, processes: Processes) -> dict[str, int]:
    torch.manual_seed(0)
    module = build_module(MODEL, work)
    groups = group_parameters(module, learning_rate=1e-4, projector_learning_rate=1e-5, weight_decay=0.0)
    ledger = Ledger()
    for tensor in (*module.parameters(), *module.buffers()):
        ledger.enter(tensor)
    dtype = torch.bfloat16 if work.number_bytes == 2 else torch.float32
    with Watching(ledger):
        engine = build_engine(
            module, groups, zero=Zero(stage=work.zero_stage), device=processes.device, dtype=dtype, per_device_batch=1
        )
        module.train()
        _run_micro_batch(engine, dtype)
        engine.step()
        gc.collect()
        steady = ledger.now
        _run_micro_batch(engine, dtype)
        ledger.peak = 0
        _run_micro_batch(engine, dtype)
    engine.destroy()
    return {"steady": steady, "peak": ledger.peak}


def _run_micro_batch(engine: Any, dtype: torch.dtype) -> None:
    ids = torch.full((1, LENGTH), 5)
    ids[:, : MODEL.tokens_per_image] = 0
    side = MODEL.image_size_px
    loss = engine(
        input_ids=ids, labels=ids, pixel_values=torch.zeros(1, 3, side, side, dtype=dtype),
        attention_mask=torch.ones_like(ids),
    )  # fmt: skip
    engine.backward(loss, scale_wrt_gas=False)


if __name__ == "__main__":
    main()
