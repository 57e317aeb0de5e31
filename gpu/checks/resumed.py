"""Check 9: a resume to the device, on one rank: its peak of memory, and the state that it restores."""

from __future__ import annotations

import gc
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.state import BYTES_PER_PARAMETER, Block

from ..training import session_of, synchronize


def run(settings, report):
    """Try FSDP2 and DDP, over NCCL where there is a GPU."""
    backend = "cpu:gloo,cuda:nccl" if settings.has_cuda else "gloo"
    dist.init_process_group(backend, init_method=f"file://{settings.folder}/group", rank=0, world_size=1)
    for name in ("FSDP2", "DDP"):
        try:
            _try(settings, report, name)
        except Exception as error:  # noqa: BLE001 - the other one is tried all the same
            report.fail(f"resume of {name}", error)
        _free()
    dist.destroy_process_group()


def _try(settings, report, name):
    folder = f"{settings.folder}/{name}"
    model, optimizer, batch = _build(settings, name, seed=0)
    session = session_of(folder, model, [optimizer])
    session.resume()
    for _ in range(3):
        _step(model, optimizer, batch)
    saved = [tensor.clone() for tensor in _state(model, optimizer)]
    started = time.perf_counter()
    session.save(3)
    stall_s = time.perf_counter() - started
    session.finish(3)
    saved = [tensor.cpu() for tensor in saved]
    num_bytes = sum(tensor.nbytes for tensor in saved)
    del model, optimizer, session
    _free()

    model, optimizer, batch = _build(settings, name, seed=1)
    synchronize(settings.device)
    base = torch.cuda.memory_allocated() - _own_bytes(model) if settings.has_cuda else 0
    if settings.has_cuda:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    session = session_of(folder, model, [optimizer])
    step = session.resume()
    synchronize(settings.device)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() - base if settings.has_cuda else 0
    restored = _state(model, optimizer)
    is_same = len(restored) == len(saved) and all(
        torch.equal(one.cpu(), two) for one, two in zip(restored, saved, strict=True)
    )
    session.close()
    gb = num_bytes / 1e9
    report.fact(f"resume of {name}, {gb:.1f} GB", f"step {step}, {'equal' if is_same else 'DIFFERS'}", "equal", is_same)
    figure = f"{seconds:.2f} s, first save's stall {stall_s:.3f} s"
    report.figure(f"resume of {name}: seconds", figure, resume_s=seconds)
    report.figure(
        f"resume of {name}: peak on the device",
        f"{peak / num_bytes:.2f} x the state",
        "<= 1.1",
        peak <= 1.1 * num_bytes,
        needs_cuda=True,
        ratio=peak / num_bytes,
    )


def _build(settings, name, seed):
    torch.manual_seed(seed)
    width = settings.pick(4096, 2048, 64)
    num_gb = settings.pick(4, 1, 0.002)
    num_blocks = max(2, round(num_gb * 1e9 / BYTES_PER_PARAMETER / (8 * width * width)))
    with torch.device(settings.device):
        model = nn.Sequential(*(Block(width) for _ in range(num_blocks)))
        batch = torch.randn(16, width)
    if name == "FSDP2":
        mesh = dist.device_mesh.init_device_mesh(settings.device, (1,))
        for block in model:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        model = DistributedDataParallel(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=name == "DDP"), batch


def _step(model, optimizer, batch):
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


def _state(model, optimizer):
    tensors = list(model.parameters())
    tensors += [each for state in optimizer.state.values() for each in state.values() if torch.is_tensor(each)]
    return [(each.to_local() if isinstance(each, DTensor) else each).detach() for each in tensors]


def _own_bytes(model):
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in model.parameters())


def _free():
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
