"""
The session: one attempt of one run, as a host or a bare loop uses it.

:class:`SpotSession` is a facade. It checks the phase of each call and passes it on. Its methods run on the training
thread; :mod:`.opened` builds what runs elsewhere. What must never break: every rank makes the same calls, and a call in
the wrong phase is an error with a remedy. Begin with :mod:`.spot_session`.
"""

from __future__ import annotations

from ..leave.way_out import Pause
from .keeper import PROGRAM
from .spot_session import SpotSession

__all__ = ["PROGRAM", "Pause", "SpotSession"]
