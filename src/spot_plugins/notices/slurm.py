"""Notices of SLURM: the time limit of the job, which is known from its start. Preemption arrives as a SIGTERM."""

from __future__ import annotations

import os
import time
from typing import Final

from ..clock import wall_time
from .base import Announcement, deadline_in

END_VARIABLE: Final = "SLURM_JOB_END_TIME"


class SlurmSource:
    """
    The source of a notice *grace_s* seconds before the end of the job.

    An end that is past when training begins is ignored, because the limit was raised or the variable is of another job.

    Args:
        grace_s: Seconds that saving and leaving may take.
        end: Unix time of the end. None: :data:`END_VARIABLE` from the environment.
    """

    name = "slurm"
    every_s = 1.0
    awaited = None

    def __init__(self, grace_s: float, end: float | None = None) -> None:
        self._grace_s = grace_s
        self._end_at: float | None = None  # monotonic, because the clock may be set during the job
        end = end if end is not None else _end_of_job()
        if end is not None and (left_s := end - wall_time()) > 0:
            self._end_at = time.monotonic() + left_s

    def poll(self) -> Announcement | None:
        """See :class:`~.base.NoticeSource`."""
        if self._end_at is None:
            return None
        left_s = self._end_at - time.monotonic()
        return Announcement(self.name, deadline_in(left_s)) if left_s <= self._grace_s else None

    def close(self) -> None:
        """See :class:`~.base.NoticeSource`."""


def _end_of_job() -> float | None:
    try:
        return float(os.environ.get(END_VARIABLE, ""))
    except ValueError:
        return None
