"""
When a periodic save is due: by steps, by seconds, or by what saves cost and how often the run is interrupted.

It runs on the training thread of rank 0 and imports no torch. What must never break: an interval never gets shorter
than a push takes. Begin with :mod:`.triggers`.
"""

from __future__ import annotations

from .auto import AutoInterval, Preemptions
from .daly import daly_interval_s
from .pacer import Pacer, recent_preemptions
from .triggers import AgreedReason, PeriodicTrigger, Trigger

__all__ = [
    "AgreedReason",
    "AutoInterval",
    "Pacer",
    "PeriodicTrigger",
    "Preemptions",
    "Trigger",
    "daly_interval_s",
    "recent_preemptions",
]
