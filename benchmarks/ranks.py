"""Calls of a function on new processes, one per rank, as torchrun makes them."""

from __future__ import annotations

import itertools
import os
import pickle
import tempfile
import traceback
import warnings
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .servers import free_port
from .state import num_threads


def run(function, world_size, *arguments, group=False):
    """
    Call ``function(*arguments)`` on *world_size* new processes, and return the result of rank 0.

    With *group*, a single rank has a process group too. The processes share no memory or threads with the caller.

    Raises:
        RuntimeError: A rank failed. The message ends with its traceback.
    """
    with tempfile.TemporaryDirectory(prefix="spot-bench-") as folder:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(
            ["benchmarks.preloaded"]
        )  # importing the hosts takes longer than many measurements
        entry = (function, arguments, world_size, free_port(), folder, group)
        processes = [context.Process(target=_rank, args=(rank, *entry)) for rank in range(world_size)]
        for process in processes:
            process.start()
        _join(processes)
        for failure in sorted(Path(folder).glob("failure-*")):
            raise RuntimeError(failure.read_text())
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"a rank ended without a result: exit codes {[each.exitcode for each in processes]}")
        return pickle.loads(Path(folder, "result").read_bytes())  # a process of this benchmark wrote it


def _join(processes):
    """Wait for all *processes*. If one fails, kill the others, which may wait for it for half an hour."""
    running = list(processes)
    while running:
        ended = wait([process.sentinel for process in running])
        running = [process for process in running if process.sentinel not in ended]
        for process in processes:
            if process.sentinel in ended:
                process.join()
        if any(process.exitcode for process in processes):
            for process in running:
                process.kill()


def gather(value):
    """Return the *value* of every rank, in rank order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def joined(lists):
    """Join each of *lists* with those of the other ranks."""
    return [list(itertools.chain(*parts)) for parts in zip(*gather(lists), strict=True)]


def current():
    """Return the rank of this process and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _rank(rank, function, arguments, world_size, port, folder, group):
    warnings.simplefilter("ignore")  # warnings of hosts and other checkpointers would hide the figures
    torch.set_num_threads(num_threads(world_size))
    if group or world_size > 1:
        os.environ.update(_torchrun_environment(rank, world_size, port))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(rank % torch.cuda.device_count())
        # By a file, because the port in the environment may be in use by now. Some libraries read that port.
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=world_size)
    try:
        result = function(*arguments)
    except BaseException:  # noqa: BLE001 - the parent reads the traceback of any failure
        Path(folder, f"failure-{rank}").write_text(traceback.format_exc())
        os._exit(1)  # the other ranks see the connection break, and no thread of a library is waited for
    if rank == 0:
        Path(folder, "result").write_bytes(pickle.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _torchrun_environment(rank, world_size, port):
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "benchmarks",
        "OMP_NUM_THREADS": str(num_threads(world_size)),
    }
