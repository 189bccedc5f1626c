"""One of several processes that put a small model under the real engine and print what DeepSpeed allocates, and where.

``python -m tests.trainer.memory_states METHOD:STAGE:BYTES[:OFFLOAD] ...`` with torch's RANK, WORLD_SIZE and MASTER_*
set; OFFLOAD is ``o`` (optimiser) or ``op`` (parameters, too), or ``v`` where communication overlaps instead, and METHOD
may end in ``-frozen``, as the projector is then, or in ``-tower``, which learns then. The first rank prints one JSON
object a line: losses, and bytes
held between two steps, at the peak of a later micro-batch, and at the peak of the optimiser's step, each of what would
be on a GPU, and what would be in the node's memory.
"""

import gc
import json
import sys
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch.utils import _pytree as pytree

from llava_api.memory import Workload
from llava_api.spec import Offload, Zero
from llava_trainer.gang.world import World, join
from llava_trainer.model.learning import group_parameters
from llava_trainer.training import engine as engine_module
from llava_trainer.training.engine import build_engine
from llava_trainer.training.slices import _flats
from tests.trainer.memory_shapes import make_shape
from tests.trainer.memory_trace import Ledger, Watching, build_module

LENGTH = 24
MODEL = make_shape(
    3, hidden=256, intermediate=768, heads=4, key_value_heads=4, vocabulary=1024, tower_layers=2, tower_hidden=64,
    image_px=56,
)  # fmt: skip


BUCKET_ELEMENTS = 300_000
"""Of a bucket of gradients here: a tenth of them all, so that what stands beside it counts."""
DEVICE = torch.device("cpu", 0)
"""What stands for the GPU: torch computes there as on ``cpu``, and DeepSpeed asks for it by its index."""


def make_work(case: str, world_size: int) -> Workload:
    method, stage, number_bytes, offload = (*case.split(":"), "")[:4]
    method, _, beside = method.partition("-")
    return Workload(
        learns_projector=beside != "frozen", learns_tower=beside == "tower",
        method=method, rows=1, length=LENGTH, pictures=1, supervised=LENGTH - 1, rank=64, dropout=0.0, masked=False,
        number_bytes=int(number_bytes), zero_stage=int(stage), world_size=world_size, offload_optimizer="o" in offload,
        offload_parameters="p" in offload, overlap_communication="v" in offload,
    )  # fmt: skip


class Placing(Watching):
    """Enters every tensor into the ledger of the memory that it would be in.

    An operation that names no device makes what it makes on the device, if anything that it was given lies there.
    """

    def __init__(self, device: Ledger, host: Ledger) -> None:
        super().__init__(device)
        self._device, self._host = device, host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        asked = (kwargs or {}).get("device")
        given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        on_host = not any(value.untyped_storage()._cdata in self._device.known for value in given)
        if asked is not None:
            on_host = asked.index is None
        others = self._device if on_host else self._host
        for value in pytree.tree_leaves(made):
            # A view, and what was changed in place, stay where they are.
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in others.known:
                (self._host if on_host else self._device).enter(value)
        return made


def main() -> None:
    world = join("cpu")
    engine_module._MAX_BUCKET_ELEMENTS = BUCKET_ELEMENTS
    get_accelerator().current_device_name = lambda: str(DEVICE)
    for case in sys.argv[1:]:
        measured = _measure(make_work(case, world.world_size), world)
        if world.is_first:
            sys.stdout.write(json.dumps({"case": case, **measured}) + "\n")
            sys.stdout.flush()
    torch.distributed.destroy_process_group()


def _measure(work: Workload, world: World) -> dict[str, Any]:
    torch.manual_seed(0)
    module = build_module(MODEL, work)
    groups = group_parameters(module, learning_rate=1e-4, projector_learning_rate=1e-5, weight_decay=0.0)
    device, host = Ledger(), Ledger()
    for tensor in (*module.parameters(), *module.buffers()):
        device.enter(tensor)
    dtype = torch.bfloat16 if work.number_bytes == 2 else torch.float32
    zero = Zero(
        stage=work.zero_stage,
        offload=Offload(optimizer=work.offload_optimizer, parameters=work.offload_parameters),
    )
    seen: dict[str, Any] = {"losses": []}

    def note(name: str) -> None:
        seen[name] = {"device": device.peak, "host": host.peak}
        device.peak, host.peak = device.now, host.now

    with Placing(device, host):
        engine = build_engine(
            module, groups, zero=zero, device=world.device, dtype=dtype, per_device_batch=1,
            overlap_communication=work.overlap_communication,
        )  # fmt: skip
        module.train()
        if work.offload_optimizer:
            # In fp32 moving them to the node's memory does nothing here, where they are in it.
            for flat in _flats(engine):
                device.leave(flat)
                host.enter(flat)
        seen["losses"].append(_run_micro_batch(engine, dtype))
        engine.step()
        gc.collect()
        note("start")
        note("steady")
        seen["losses"].append(_run_micro_batch(engine, dtype))
        note("first")
        seen["losses"].append(_run_micro_batch(engine, dtype))
        note("peak")
        engine.step()
        note("step")
    engine.destroy()
    return seen


def _run_micro_batch(engine: Any, dtype: torch.dtype) -> float:
    ids = torch.full((1, LENGTH), 5, device=DEVICE)
    ids[:, : MODEL.tokens_per_image] = 0
    side = MODEL.image_size_px
    loss = engine(input_ids=ids, labels=ids, pixel_values=torch.zeros(1, 3, side, side, dtype=dtype, device=DEVICE))
    engine.backward(loss, scale_wrt_gas=False)
    return loss.item()


if __name__ == "__main__":
    main()
