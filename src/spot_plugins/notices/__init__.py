"""
Where notices come from: signals, and sources that are asked.

A source is one small file here (``aws``, ``gcp``, ``azure``, ``slurm``, ``file``) that fulfils
:class:`~.base.NoticeSource`;
:class:`NoticePoller` asks them all from one thread.
"""

from __future__ import annotations

from .base import Announcement, NoticeSource
from .poller import NoticePoller
from .signals import SignalNotices
from .sources import make_sources
from .surroundings import Surroundings, look_around

__all__ = [
    "Announcement",
    "NoticePoller",
    "NoticeSource",
    "SignalNotices",
    "Surroundings",
    "look_around",
    "make_sources",
]
