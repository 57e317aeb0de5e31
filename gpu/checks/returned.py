"""Check 11: device memory after a commit, and dropout after a resume."""

from __future__ import annotations

import gc

import torch
from torch import nn

from spot_plugins.state import RngPart

from ..training import Events, session_of, synchronize, wait_stored


class Replacing(torch.optim.Optimizer):
    """An optimizer whose state is a new tensor after each step."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["mean"] = parameter.grad + 0.9 * state["mean"] if state else parameter.grad.clone()
            parameter.sub_(state["mean"], alpha=self.param_groups[0]["lr"])


def run(settings, report):
    """Measure the memory for an optimizer that changes its state in place, and for one that replaces it."""
    for name, make in (("AdamW", torch.optim.AdamW), ("state that is replaced", Replacing)):
        _memory(settings, report, name, make)
    _dropout(settings, report)


def _memory(settings, report, name, make):
    width = settings.pick(8192, 8192, 64)
    model = nn.Linear(width, width, device=settings.device)
    optimizer = make(model.parameters())
    batch = torch.randn(8, width, device=settings.device)
    events = Events()
    session = session_of(f"{settings.folder}/{name}", model, [optimizer], events)
    session.resume()

    def step():
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    for number in (1, 2):  # the first save makes what stays
        step()
        session.after_step(number)
        before = _allocated(settings)
        session.save(number)
        step()
        wait_stored(events, number, 20)
    extra = _allocated(settings) - before
    figure = f"{extra / 2**20:.1f} MiB more than before, state of {model.weight.nbytes / 2**20:.0f} MiB per tensor"
    report.fact(f"device memory after a commit, {name}", figure, "0", extra <= 2**20, needs_cuda=True)
    session.close()


def _allocated(settings):
    synchronize(settings.device)
    gc.collect()
    return torch.cuda.memory_allocated() if settings.has_cuda else 0


def _dropout(settings, report):
    def life(seed, num_steps, save_at=None):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 256), nn.Dropout(0.5), nn.Linear(256, 64)).to(settings.device)
        optimizer = torch.optim.AdamW(model.parameters())
        events = Events()
        session = session_of(f"{settings.folder}/dropout", model, [optimizer], events)
        session.register("rng", RngPart())
        first = (session.resume() or 0) + 1
        losses = []
        for step in range(first, num_steps + 1):
            optimizer.zero_grad()
            loss = model(torch.randn(32, 64, device=settings.device)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step == save_at:
                session.save(step)
        if save_at:
            wait_stored(events, save_at, 20)
        session.close()
        return first, losses

    _, expected = life(0, 8, save_at=4)
    first, found = life(1, 8)
    figure = f"resumed at step {first}, {sum(a == b for a, b in zip(found, expected[4:], strict=False))} of 4 equal"
    report.fact("losses with dropout after a resume", figure, "resumed at step 5, all equal", found == expected[4:])
