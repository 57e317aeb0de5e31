"""How often to save, and what a run makes of the machines it is given: pure arithmetic, for planners and for people."""

from .auto import AutoInterval, Preemptions
from .goodput import Lease, Outcome, Remaining, TrainingRun, replay
from .interval import daly_interval_s

__all__ = [
    "AutoInterval",
    "Lease",
    "Outcome",
    "Preemptions",
    "Remaining",
    "TrainingRun",
    "daly_interval_s",
    "replay",
]
