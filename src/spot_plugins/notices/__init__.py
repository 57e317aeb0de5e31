"""
Notices that the machine will be taken: signals, and notice sources that are polled.

Everything here runs in the training process. :class:`SignalNotices` installs handlers on the main thread and calls back
from the thread ``spot-signals``. :class:`NoticePoller` polls all sources from the thread ``spot-notices``. What must
never break: a source that fails never disturbs training, and a notice arrives while the main thread is in a long C
call. Begin with :mod:`.base`, then read :mod:`.poller`. Each provider has one small file.
"""

from __future__ import annotations

from .base import Announcement, NoticeSource
from .poller import NoticePoller
from .signals import NOT_OBEYED, SignalNotices
from .sources import make_sources
from .surroundings import Surroundings, look_around

__all__ = [
    "NOT_OBEYED",
    "Announcement",
    "NoticePoller",
    "NoticeSource",
    "SignalNotices",
    "Surroundings",
    "look_around",
    "make_sources",
]
