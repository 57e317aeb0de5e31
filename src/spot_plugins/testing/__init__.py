"""
Fakes and faults for tests of programs that use this package. No training imports it.

:func:`run_thread_ranks` runs several ranks as threads of one process. They agree and save as processes do, but without
``torch.distributed``. So a test can interrupt a training loop of several ranks in a second.

:func:`drill` runs a whole training command as ``spot drill`` does. Its faults are values, such as ``KillRank(rank=1)``.

:class:`FaultProxy` stands between a training and a server, such as its store, and breaks the way there as told.
"""

from __future__ import annotations

from ..drill.faults import (
    Corruption,
    EmptyNotice,
    Freeze,
    HostLoss,
    KillLauncher,
    KillPusher,
    KillRank,
    Notice,
    Reboot,
    Signal,
    StoreOutage,
    TwoSignals,
)
from ..drill.inner_faults import ClockJump, FullDisk, ReadOnlyDisk, SlowDisk
from ..drill.target import Fault
from ..drill.verdict import Verdict
from .drills import drill
from .fault_proxy import FaultProxy
from .thread_ranks import ThreadRanks, run_thread_ranks

__all__ = [
    "ClockJump",
    "Corruption",
    "EmptyNotice",
    "Fault",
    "FaultProxy",
    "Freeze",
    "FullDisk",
    "HostLoss",
    "KillLauncher",
    "KillPusher",
    "KillRank",
    "Notice",
    "ReadOnlyDisk",
    "Reboot",
    "Signal",
    "SlowDisk",
    "StoreOutage",
    "ThreadRanks",
    "TwoSignals",
    "Verdict",
    "drill",
    "run_thread_ranks",
]
