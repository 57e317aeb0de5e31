"""Runs a function on fresh processes, one a rank, as torchrun would."""

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
    Return what rank 0 gets from ``function(*arguments)``, called on *world_size* new processes.

    *group*: whether a single rank has a process group, too. The caller's memory and threads play no part.

    Raises:
        RuntimeError: A rank failed; the message ends with its traceback.
    """
    with tempfile.TemporaryDirectory(prefix="spot-bench-") as folder:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.preloaded"])  # to import the hosts takes longer than many a run
        entry = (function, arguments, world_size, free_port(), folder, group)
        processes = [context.Process(target=_rank, args=(rank, *entry)) for rank in range(world_size)]
        for process in processes:
            process.start()
        _join(processes)
        for failure in sorted(Path(folder).glob("failure-*")):
            raise RuntimeError(failure.read_text())
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"a rank ended without a result: exit codes {[each.exitcode for each in processes]}")
        return pickle.loads(Path(folder, "result").read_bytes())  # our own process wrote it a moment ago


def _join(processes):
    """Wait for all *processes*. When one fails, end the others, which may wait for it for half an hour."""
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
    """Return the *value* of every rank, in their order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def joined(lists):
    """Return this rank's lists, each joined with those of all other ranks."""
    return [list(itertools.chain(*parts)) for parts in zip(*gather(lists), strict=True)]


def current():
    """Return rank and number of ranks of this process."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _rank(rank, function, arguments, world_size, port, folder, group):
    warnings.simplefilter("ignore")  # of hosts and peers; their figures are what is read here
    torch.set_num_threads(num_threads(world_size))
    if group or world_size > 1:
        os.environ.update(_torchrun_environment(rank, world_size, port))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(rank % torch.cuda.device_count())
        # By a file: the port in the environment is for those that look there, and may be taken by the time.
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=world_size)
    try:
        result = function(*arguments)
    except BaseException:  # noqa: BLE001 - whatever it is, the parent is to read it
        Path(folder, f"failure-{rank}").write_text(traceback.format_exc())
        os._exit(1)  # the other ranks see the connection break, and nobody waits for a peer's threads
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
