"""Process lives of a training for a soak, drawn by chance: ranks, a fault of the store, and an end."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from spot_plugins.testing import FaultProxy

MAX_STEPS = 80  # of a life, before its signal
MAX_FAULT_S = 4.0

FAULTS = {
    "none": FaultProxy.heal,
    "503": lambda proxy: proxy.fail_with(503, "SlowDown"),
    "429": lambda proxy: proxy.fail_with(429, "TooManyRequests"),
    "403": lambda proxy: proxy.fail_with(403, "AccessDenied"),
    "reset": FaultProxy.refuse,
    "hang": FaultProxy.hang,
    "slow drip": lambda proxy: proxy.slow(20_000),
    "reset in the body": lambda proxy: proxy.reset_after(1_000),
    "answers without an end": FaultProxy.cut_answers,  # of puts too: the object is stored, and the client does not know
}


@dataclass(frozen=True, kw_only=True)
class Life:
    """One process life of the training, as it is drawn."""

    ranks: int
    signal: (
        signal.Signals | None
    )  # None: it trains to the end. SIGKILL to all ranks ends the machine, with the pushers.
    receivers: list[int]
    keeps_disk: bool
    after_steps: int  # optimizer steps before the signal
    fault: str
    fault_after_steps: int  # optimizer steps before the fault. 0: it begins before the processes start.
    fault_s: float


def drawn_life(draw, signals=(signal.SIGTERM, signal.SIGKILL)):
    """Draw a life that ends by one of *signals*."""
    ranks, after_steps, by = draw.randint(1, 3), draw.randint(1, MAX_STEPS), draw.choice(signals)
    receivers = draw.choice([[draw.randrange(ranks)], [*range(ranks)]])
    return Life(
        ranks=ranks,
        signal=by,
        receivers=receivers,
        keeps_disk=draw.random() < 0.5 or (by == signal.SIGKILL and len(receivers) < ranks),
        after_steps=after_steps,
        fault=draw.choice([*FAULTS]),
        fault_after_steps=draw.randint(0, after_steps),
        fault_s=draw.uniform(0.2, MAX_FAULT_S),
    )
