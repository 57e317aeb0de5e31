"""
Fingerprints of optimizer steps: short hashes of everything that a step was made of.

Lives here: the fingerprint of a step, its file on the local disk, its way into a checkpoint, and comparisons.
Runs in: the training thread of every rank, a few microseconds after each step. ``spot drill`` reads the memory.
Must never break: a record waits for no device and ends no training. It is equal if a step is trained again.
Begin with: :mod:`.recorder`. A name is imported when it is first used, because only some of them need torch.
"""

from __future__ import annotations

__all__ = [
    "KINDS",
    "PART",
    "Difference",
    "Recorded",
    "Recorder",
    "RingId",
    "StepRecord",
    "compare_runs",
    "read",
    "recorder_of",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .record import KINDS, StepRecord
    from .recorder import Recorder, recorder_of
    from .ring import RingId
    from .runs import PART, Difference, Recorded, compare_runs, read
else:  # a type checker would accept any name from a __getattr__

    def __getattr__(name: str) -> object:
        from importlib import import_module

        modules = {
            "KINDS": ".record",
            "PART": ".runs",
            "Difference": ".runs",
            "Recorded": ".runs",
            "Recorder": ".recorder",
            "RingId": ".ring",
            "StepRecord": ".record",
            "compare_runs": ".runs",
            "read": ".runs",
            "recorder_of": ".recorder",
        }
        if name not in modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
