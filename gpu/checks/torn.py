"""Check 6: a change in place, without a fence, after the copies are queued and before they are done."""

from __future__ import annotations

import time

import torch

from spot_plugins.events import SaveAbandoned, Staged

from ..training import Ahead, Events, outcome, session_of, sleep_on_device, synchronize, wait_for_buffers, wait_stored


def run(settings, report):
    """Clamp all weights behind a kernel that the copies wait for as well."""
    training = Ahead(settings.pick(1, 1, 0.001), settings.device)
    events = Events()
    session = session_of(f"{settings.folder}/run", training.model, [training.optimizer], events)
    session.resume()
    session.after_step(1)
    wait_for_buffers(session, 30)
    training.step()
    synchronize(settings.device)
    before = [parameter.detach().clone() for parameter in training.model.parameters()]
    sleep_on_device(1.0, settings.device)
    started = time.perf_counter()
    session.save(2)
    stall_s = time.perf_counter() - started
    time.sleep(0.4 if settings.has_cuda else 0.0)  # the copying thread has queued the copies, and the kernel still runs
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.clamp_(-1e-3, 1e-3)
    ended = outcome(events, 2, 30)
    figure = type(ended).__name__
    if isinstance(ended, Staged):
        wait_stored(events, 2, 30)
        session.close()
        figure = f"staged; {_torn(settings, before)} of {len(before)} weights differ from those of the step"
    figure += f"; the call of save took {stall_s:.3f} s"
    expectation = "SaveAbandoned"
    report.fact("clamp_ after a save", figure, expectation, isinstance(ended, SaveAbandoned), needs_cuda=True)


def _torn(settings, before):
    """Resume, and return the number of weights that are not those *before* the change."""
    other = Ahead(settings.pick(1, 1, 0.001), settings.device, seed=1)
    session = session_of(f"{settings.folder}/run", other.model, [other.optimizer])
    session.resume()
    session.close()
    return sum(not torch.equal(restored, was) for restored, was in zip(other.model.parameters(), before, strict=True))
