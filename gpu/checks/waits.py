"""Check 7: saves while torch raises an error for each operation that waits for the device."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from spot_plugins.events import Staged

from ..training import Events, outcome, session_of, synchronize, wait_for_buffers

AdamW = torch.optim.AdamW


def run(settings, report):
    """Try each kind of optimizer, bfloat16 weights, and the scaler of float16."""
    kinds = {
        "default": AdamW,
        "fused": partial(AdamW, fused=True),
        "foreach": partial(AdamW, foreach=True),
        "for each by itself": partial(AdamW, foreach=False),
    }
    if settings.has_cuda:
        kinds["capturable"] = partial(AdamW, capturable=True)
    for name, make in kinds.items():
        _try(settings, report, f"AdamW {name}", make)
    _try(settings, report, "bf16 weights", AdamW, dtype=torch.bfloat16)
    _try(settings, report, "GradScaler", AdamW, scaler=torch.amp.GradScaler(settings.device, enabled=settings.has_cuda))


def _try(settings, report, name, make, dtype=torch.float32, scaler=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.Linear(128, 64))
    model.to(settings.device, dtype)
    optimizer = make(model.parameters())
    events = Events()
    session = session_of(f"{settings.folder}/{name}", model, [optimizer], events)
    if scaler is not None:
        session.register("scaler", scaler)
    error = None
    try:
        session.resume()
        _step(settings, model, optimizer, dtype, scaler)
        session.after_step(1)
        wait_for_buffers(session, 20)
        session.save(1)
        outcome(events, 1, 20)
        _step(settings, model, optimizer, dtype, scaler)
        synchronize(settings.device)
        with _no_waits(settings):
            session.after_step(2)
            session.save(2)
            ended = outcome(events, 2, 20)
    except Exception as raised:  # noqa: BLE001 - it is the figure
        error = raised
    with _ignored():
        session.close()
    if error is not None:
        figure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
    else:
        figure = "no error" if isinstance(ended, Staged) else f"abandoned: {ended.reason}"[:200]
    report.fact(f"save without waits, {name}", figure, "no error", figure == "no error", needs_cuda=True)


def _step(settings, model, optimizer, dtype, scaler):
    optimizer.zero_grad()
    with torch.autocast(settings.device, torch.float16, enabled=scaler is not None and settings.has_cuda):
        loss = model(torch.randn(16, 64, device=settings.device, dtype=dtype)).float().square().mean()
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


@contextmanager
def _no_waits(settings):
    if not settings.has_cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def _ignored():
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the figure is known already
        print(error)
