"""Check 8: adapters on a frozen base of 8 billion parameters, with the host ten steps ahead of the device."""

from __future__ import annotations

import time
from collections import deque

import torch
from torch import nn

from spot_plugins.events import Committed, SaveAbandoned, Staged

from ..training import Events, memory_available, session_of, synchronize, wait_for_buffers

AHEAD = 10
RANK = 16


class Adapted(nn.Module):
    """A frozen matrix, and the product of two small trained ones beside it."""

    def __init__(self, num_in, num_out):
        super().__init__()
        self.base = nn.Parameter(torch.empty(num_out, num_in, dtype=torch.bfloat16).normal_(std=0.02), False)
        self.down = nn.Parameter(torch.empty(RANK, num_in).normal_(std=0.02))
        self.up = nn.Parameter(torch.zeros(num_out, RANK))

    def forward(self, x):
        adapted = (x.float() @ self.down.T) @ self.up.T
        return nn.functional.linear(x, self.base) + adapted.bfloat16()


class Layer(nn.Module):
    """The matrices of a layer of Llama 3 8B, without the softmax between them."""

    def __init__(self, width, inner, narrow):
        super().__init__()
        self.q, self.o = Adapted(width, width), Adapted(width, width)
        self.k, self.v = Adapted(width, narrow), Adapted(width, narrow)
        self.gate, self.up, self.down = Adapted(width, inner), Adapted(width, inner), Adapted(inner, width)

    def forward(self, x):
        x = x + self.o(self.q(x)) + 0.01 * (self.k(x) * self.v(x)).mean()
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def run(settings, report):
    """Measure the first save, which stores the base, and the second, which refers to it."""
    num_layers, width, inner = settings.pick((32, 4096, 14336), (4, 4096, 14336), (2, 64, 128))
    torch.manual_seed(0)
    with torch.device(settings.device):
        model = nn.Sequential(*(Layer(width, inner, width // 4) for _ in range(num_layers)))
        batch = torch.randn(settings.pick(2048, 2048, 8), width, dtype=torch.bfloat16)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen_gb = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad) / 1e9
    if memory_available(settings) < 1.3e9 * frozen_gb:
        report.skip("frozen base and LoRA", f"{1.3 * frozen_gb:.0f} GB of memory are needed")
        return
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    events = Events()
    session = session_of(f"{settings.folder}/run", model, [optimizer], events)
    loop = _Loop(settings, model, optimizer, batch)
    session.resume()
    loop.step()
    session.after_step(1)
    wait_for_buffers(session, 60)
    size = f"{frozen_gb:.1f} GB frozen"
    for name, step in (("first", 2), ("second", 3)):
        if not _save(settings, report, session, events, loop, f"{name} save, {size}", step):
            return
        if name == "first":
            started = time.monotonic()
            events.wait(Committed, SaveAbandoned, step=step, within_s=60)
            report.figure(f"first save, {size}: stored", f"{time.monotonic() - started:.1f} s later")


def _save(settings, report, session, events, loop, name, step):
    for _ in range(AHEAD):
        loop.step()
    started = time.perf_counter()
    session.save(step)
    stall_s = time.perf_counter() - started
    limit = time.perf_counter() + settings.pick(25, 10, 10)
    ended = []
    while not ended and time.perf_counter() < limit:
        loop.step()
        ended = events.of(Staged, SaveAbandoned, step=step)
    report.figure(f"{name}: stall", f"{stall_s * 1e3:.1f} ms", "< 20 ms (second)", stall_s < 0.02, stall_s=stall_s)
    if not ended:  # without new work on the device it ends sooner
        started = time.perf_counter()
        synchronize(settings.device)
        ended = [events.wait(Staged, SaveAbandoned, step=step, within_s=15)]
        seconds = time.perf_counter() - started
        report.fact(f"{name}: staged beside training", f"only {seconds:.1f} s after training stopped", "yes", False)
    event = ended[0][1]
    if not isinstance(event, Staged):
        report.fact(f"{name}: staged", f"abandoned: {event.reason}", "yes", False)
        return False
    figure = f"{event.copy_s:.2f} s, {event.num_bytes / 1e9:.2f} GB, step {loop.pace_s * 1e3:.0f} ms"
    report.figure(f"{name}: copy", figure, "< 1 s", event.copy_s < 1, copy_s=event.copy_s)
    return True


class _Loop:
    """Steps of which the host is at most ten ahead."""

    def __init__(self, settings, model, optimizer, batch):
        self._settings = settings
        self._model, self._optimizer, self._batch = model, optimizer, batch
        self._marks = deque()
        self._times = deque([time.perf_counter()], maxlen=2 * AHEAD)

    @property
    def pace_s(self):
        """Seconds of a recent step."""
        return (self._times[-1] - self._times[0]) / max(1, len(self._times) - 1)

    def step(self):
        self._optimizer.zero_grad()
        self._model(self._batch).float().square().mean().backward()
        self._optimizer.step()
        if self._settings.has_cuda:
            self._marks.append(torch.cuda.current_stream().record_event())
            if len(self._marks) > AHEAD:
                self._marks.popleft().synchronize()
        self._times.append(time.perf_counter())
