"""
Notices of Compute Engine Spot and preemptible machines, from ``preempted`` of the metadata server.

The value changes when the shutdown begins, or up to 120 s before that if the machine was created with a longer notice.
A machine cannot see how it was created, so the grace period comes from the settings.
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
"""Variable that points Google's own clients to another metadata server."""

PATH: Final = "/computeMetadata/v1/instance/preempted"
HEADERS: Final = {"Metadata-Flavor": "Google"}


class GcpSource:
    """
    The source of a preemption on Google Cloud.

    One request is answered by the server when the value changes. Another request is made every 5 s, because the first
    one may get lost.

    Args:
        grace_s: Seconds from the change of the value to the end of the machine.
        host: Host name, with a port if needed. None: :data:`HOST_VARIABLE` from the environment, or :data:`HOST`.
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
            # If the change cannot be read, the request below raises the error.
            with suppress(OSError, HTTPException, UnusableAnswerError, ValueError):
                if _is_preempted(change.answer()):
                    return self._announce()
        if self._change is None:  # before the request below, so that no change between the two is missed
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
        raise ValueError(f"preempted={value[:20]!r} is neither TRUE nor FALSE")
    return value == "TRUE"
