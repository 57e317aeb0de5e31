"""
The schedule of periodic saves: by steps, by seconds, or by the cost of saves and the rate of preemptions.

Rank 0 asks its trigger on the training thread. :class:`Pacer` gets events on any thread. Nothing here imports torch.
What must never break: ``every_seconds="auto"`` never chooses an interval that is shorter than a push. Begin with
:mod:`.triggers`, then read :mod:`.auto`.
"""

from __future__ import annotations

from .auto import AutoInterval, Preemptions
from .daly import daly_interval_s
from .pacer import Pacer, preemptions_until_now, recent_preemptions
from .triggers import AgreedReason, PeriodicTrigger, Trigger

__all__ = [
    "AgreedReason",
    "AutoInterval",
    "Pacer",
    "PeriodicTrigger",
    "Preemptions",
    "Trigger",
    "daly_interval_s",
    "preemptions_until_now",
    "recent_preemptions",
]
