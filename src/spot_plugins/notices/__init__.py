"""
Where notices come from: signals, and sources that are asked.

A source is one small file here (``aws``, ``gcp``, ``azure``, ``slurm``, ``file``) that fulfils :class:`~.base.Source`;
:class:`NoticeWatch` asks them all from one thread.
"""

from __future__ import annotations

from .base import Announcement, Source
from .poller import NoticeWatch
from .signals import SignalNotices
from .sources import make_sources
from .surroundings import Surroundings, look_around

__all__ = [
    "Announcement",
    "NoticeWatch",
    "SignalNotices",
    "Source",
    "Surroundings",
    "look_around",
    "make_sources",
]
