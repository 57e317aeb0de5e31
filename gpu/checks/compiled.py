"""Check 12: compiled models and optimizers after a resume, and a CUDA graph that is captured during a copy."""

from __future__ import annotations

import time
import warnings

import torch
from torch import nn

from spot_plugins.events import Staged

from ..training import Ahead, Events, outcome, session_of, sleep_on_device, synchronize, wait_for_buffers, wait_stored


def exact(settings, report):
    """Train eight steps, save after four, and compare with the last four steps after a resume."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        started = time.monotonic()
        _, expected, weights = _life(settings, seed=0, save_at=4)
        first_s = time.monotonic() - started
        torch.compiler.reset()
        first, found, restored = _life(settings, seed=1)
    is_same = found == expected[first - 1 :] and torch.equal(weights, restored)
    figure = f"resumed at step {first}, {'equal' if is_same else f'{found} for {expected}'}"
    name = "compiled with reduce-overhead" if settings.has_cuda else "compiled by the eager backend"
    report.fact(f"{name}, model and optimizer", figure, "resumed at step 5, equal", is_same and first == 5)
    texts = sorted({str(warning.message).splitlines()[0][:100] for warning in seen})
    seconds = time.monotonic() - started - first_s
    report.figure("compiled: seconds of both lives", f"{first_s:.0f} and {seconds:.0f} s; warnings: {texts}")


def _life(settings, seed, save_at=None):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).to(settings.device)
    options = {"capturable": True, "lr": torch.tensor(1e-3, device=settings.device)} if settings.has_cuda else {}
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    how = {"mode": "reduce-overhead"} if settings.has_cuda else {"backend": "eager"}
    compiled = torch.compile(model, **how)

    @torch.compile(fullgraph=False, **({} if settings.has_cuda else how))
    def update():
        optimizer.step()

    events = Events()
    session = session_of(f"{settings.folder}/run", model, [optimizer], events)
    first = (session.resume() or 0) + 1
    losses = []
    for step in range(first, 9):
        torch.manual_seed(100 + step)
        batch = torch.randn(32, 64, device=settings.device)
        loss = compiled(batch).square().mean()
        loss.backward()
        update()
        optimizer.zero_grad()
        losses.append(loss.item())
        session.after_step(step)
        if step == save_at:
            session.save(step)
    if save_at:
        wait_stored(events, save_at, 20)
    session.close()
    return first, losses, model[0].weight.detach().clone()


def capture(settings, report):
    """Capture a graph while the copying thread waits for a copy."""
    if not settings.has_cuda:
        report.skip("capture of a graph during a copy", "needs a GPU")
        return
    training = Ahead(1, "cuda")
    events = Events()
    session = session_of(f"{settings.folder}/run", training.model, [training.optimizer], events)
    session.resume()
    session.after_step(1)
    wait_for_buffers(session, 30)
    for step, mode in ((2, "thread_local"), (3, "global")):
        _capture(report, session, events, training, step, mode)
    session.close()


def _capture(report, session, events, training, step, mode):
    numbers = torch.ones(1024, device="cuda")
    numbers * 2
    training.step()
    synchronize("cuda")
    sleep_on_device(0.5, "cuda")
    session.save(step)
    time.sleep(0.2)  # the copying thread has queued its copies, and waits for them
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    captured = "captured"
    try:
        with torch.cuda.stream(side):
            graph.capture_begin(capture_error_mode=mode)
            doubled = numbers * 2
            time.sleep(0.6)  # meanwhile the copy ends
            graph.capture_end()
        graph.replay()
        torch.cuda.synchronize()
        captured += ", right" if bool((doubled == 2).all()) else ", WRONG"
    except RuntimeError as error:
        captured = str(error).splitlines()[0]
    ended = outcome(events, step, 20)
    saved = "staged" if isinstance(ended, Staged) else f"abandoned: {ended.reason}"
    is_right = captured == "captured, right" and saved == "staged"
    report.fact(f"capture during a copy, {mode} mode", f"{captured}; step {saved}", "captured, staged", is_right)
