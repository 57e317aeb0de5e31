"""
Compute Engine Spot and preemptible machines: ``preempted`` of the metadata server.

It turns with the shutdown itself, or 120 s before where the machine was made so. Which of the two cannot be seen from
inside, so the time is that of the settings.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from http.client import HTTPException
from typing import Final

from .base import Announcement, deadline_in
from .web import Answer, Request, UnusableAnswerError, ask, check

HOST: Final = "metadata.google.internal"
HOST_VARIABLE: Final = "GCE_METADATA_HOST"
"""The variable by which Google's own clients are led to another metadata server."""

PATH: Final = "/computeMetadata/v1/instance/preempted"
HEADERS: Final = {"Metadata-Flavor": "Google"}


class GcpSource:
    """
    A request that the server answers when the value changes, and a look now and then in case that one was lost.

    Args:
        grace_s: Seconds from the change to the end of the machine.
        host: Name, perhaps with a port. None: that of the environment, or the usual one.
    """

    name = "gcp"
    every_s = 5.0

    def __init__(self, grace_s: float, host: str | None = None) -> None:
        self._url = f"http://{host or os.environ.get(HOST_VARIABLE) or HOST}{PATH}"
        self._grace_s = grace_s
        self._change: Request | None = None

    @property
    def awaited(self) -> socket.socket | None:
        """See :class:`~.base.NoticeSource`."""
        return None if self._change is None else self._change.socket

    def poll(self) -> Announcement | None:
        """See :class:`~.base.NoticeSource`."""
        if self._change is not None and self._change.is_ready():
            change, self._change = self._change, None
            with suppress(
                OSError, HTTPException, UnusableAnswerError, ValueError
            ):  # the look below tells what is wrong
                if _is_preempted(change.answer()):
                    return self._announce()
        if self._change is None:  # before the look: a change between the two is not missed
            self._change = Request(f"{self._url}?wait_for_change=true", HEADERS)
        return self._announce() if _is_preempted(ask(self._url, HEADERS)) else None

    def close(self) -> None:
        """See :class:`~.base.NoticeSource`."""
        if self._change is not None:
            self._change.close()
            self._change = None

    def _announce(self) -> Announcement:
        return Announcement(self.name, deadline_in(self._grace_s))


def _is_preempted(answer: Answer) -> bool:
    value = check(answer).text()
    if value not in ("TRUE", "FALSE"):
        raise ValueError(f"neither TRUE nor FALSE but {value[:20]!r}")
    return value == "TRUE"
