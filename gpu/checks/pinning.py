"""Checks 3 and 4: a registration that the driver refuses, and copies that cross from one registration to the next."""

from __future__ import annotations

import time

import torch
from torch import nn

from spot_plugins.save import devices

from ..host_memory import HostMemory, copy_speed
from ..training import Events, outcome, session_of, sleep_on_device

SIZE = 64 * 2**20


def twice(settings, report):
    """Register the same memory twice, and look for the error in the kernel after it."""
    if not settings.has_cuda:
        report.skip("register twice, then a kernel", "needs a GPU")
        return
    torch.ones(1, device="cuda")
    memory = HostMemory(SIZE)
    memory.fault_in_by_memset()
    errors = memory.register(), memory.register()
    figure = f"CUDA errors {errors[0]} and {errors[1]}; kernel: {_next_kernel()}, the one after: {_next_kernel()}"
    report.fact("register twice, then a kernel (bare CUDA)", figure, "shows whether the error stays set")
    memory.unregister()
    memory.close()
    _refused_save(settings, report)


def _refused_save(settings, report):
    """Save while the driver refuses to register, by registering each buffer before the session does."""
    cudart = devices._cudart()

    class Refusing:
        cudaHostUnregister = staticmethod(cudart.cudaHostUnregister)  # noqa: N815 - the driver's name

        @staticmethod
        def cudaHostRegister(*arguments):  # noqa: N802 - the driver's name
            cudart.cudaHostRegister(*arguments)
            return cudart.cudaHostRegister(*arguments)

    devices._cudart = lambda: Refusing
    model = nn.Linear(64, 64, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    events = Events()
    session = session_of(f"{settings.folder}/run", model, [optimizer], events)
    session.resume()
    model(torch.ones(4, 64, device="cuda")).sum().backward()
    optimizer.step()
    session.save(1)
    kernel = _next_kernel()
    ended = type(outcome(events, 1, 20)).__name__
    session.close()
    figure = f"next kernel: {kernel}; the step: {ended}"
    report.fact("a save whose memory cannot be pinned", figure, "no error, Staged", (kernel, ended) == ("ok", "Staged"))


def _next_kernel():
    try:
        torch.ones(16, device="cuda").add_(1)
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "ok"


def across(settings, report):
    """Copy once across two registrations of neighboring memory."""
    if not settings.has_cuda:
        report.skip("one copy across two registrations", "needs a GPU")
        return
    source = torch.randint(0, 255, (SIZE,), dtype=torch.uint8, device="cuda")
    memory = HostMemory(SIZE)
    memory.fault_in_by_memset()
    memory.register()
    whole = copy_speed(source, memory.bytes)
    memory.unregister()
    errors = memory.register(0, SIZE // 2), memory.register(SIZE // 2, SIZE // 2)
    memory.bytes.zero_()
    try:
        sleep_on_device(0.3, "cuda")
        started = time.perf_counter()
        memory.bytes.copy_(source, non_blocking=True)
        call_s = time.perf_counter() - started
        torch.cuda.synchronize()
        is_right = torch.equal(memory.bytes, source.cpu())
        speed = copy_speed(source, memory.bytes)
    except RuntimeError as error:
        figure = f"registrations {errors}: {str(error).splitlines()[0]}"
        report.fact("one copy across two registrations", figure, "decides the pieces of a buffer", False)
        return
    waits = "waits for the device" if call_s > 0.15 else "waits for nothing"
    figure = f"{'right' if is_right else 'WRONG'}, {speed / 1e9:.1f} GB/s (one registration {whole / 1e9:.1f}), {waits}"
    report.fact("one copy across two registrations", figure, "right, as fast, waits for nothing", is_right)
