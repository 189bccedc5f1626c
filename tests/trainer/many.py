"""Several training processes for tests, without a launcher: libraries are imported once, in a server that forks them.

A process that imports torch, transformers and DeepSpeed itself takes about ten seconds of CPU; one of these is there at
once. They run a function of a module that can be imported, and hand back what it returns.
"""

import faulthandler
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.queues import Queue
from typing import Any

DEADLINE_S = 240
_PRELOADED = ("llava_trainer.training.train", "tests.trainer.trainings")


def run_in_processes(number: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``function(world, *arguments)`` in ``number`` processes of one training; what each returned, by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    answers: Queue[tuple[int, Any]] = context.Queue()
    started = [
        context.Process(target=_run, args=(rank, number, port, answers, function, arguments)) for rank in range(number)
    ]
    try:
        for process in started:
            process.start()
        collected = dict(answers.get(timeout=DEADLINE_S) for _ in started)
        for process in started:
            process.join(DEADLINE_S)
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
    failed = [answer for answer in collected.values() if isinstance(answer, BaseException)]
    if failed:
        raise failed[0]
    return [collected[rank] for rank in range(number)]


def _run(
    rank: int, number: int, port: int, answers: "Queue[tuple[int, Any]]", function: Callable[..., Any], arguments: Any
) -> None:
    from llava_trainer.gang.world import join

    faulthandler.dump_traceback_later(DEADLINE_S - 10, exit=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    try:
        answers.put((rank, function(join("cpu"), *arguments)))
    except Exception as error:  # handed to the test, which raises it
        answers.put((rank, RuntimeError(f"process {rank}: {type(error).__name__}: {error}")))
        answers.close()
        answers.join_thread()
        os._exit(1)
