"""
Notices of Azure Spot, from Scheduled Events. They arrive about 30 s ahead.

The first request switches Scheduled Events on for the machine. Its answer may take two minutes.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any, Final

from .base import Announcement, deadline_at
from .web import Answer, Request, UnusableAnswerError, ask, check

ENDPOINT: Final = "http://169.254.169.254"
EVENTS: Final = "/metadata/scheduledevents?api-version=2020-07-01"
OWN_NAME: Final = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
HEADERS: Final = {"Metadata": "true"}

LONGEST_S: Final = 30.0  # Azure promises "up to" 30 s, so a longer time means a wrong clock
FIRST_ANSWER_S: Final = 150.0
USUAL_ANSWER_S: Final = 0.5


class AzureSource:
    """
    The source of ``Preempt`` events of this machine. In a scale set, events of other machines are ignored.

    Args:
        endpoint: Base URL of the metadata service.
        first_answer_s: Longest wait in seconds for an answer.
    """

    name = "azure"
    every_s = 1.0  # as Azure advises

    def __init__(self, endpoint: str = ENDPOINT, first_answer_s: float = FIRST_ANSWER_S) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._first_answer_s = first_answer_s
        self._own_name = ""
        self._own_events: list[str] = []
        self._request: Request | None = None
        self._asked_at = 0.0

    @property
    def awaited(self) -> socket.socket | None:
        """See :class:`~.base.NoticeSource`."""
        return None if self._request is None else self._request.socket

    def poll(self) -> Announcement | None:
        """See :class:`~.base.NoticeSource`."""
        if self._request is None:
            self._asked_at = time.monotonic()
            self._request = Request(self._endpoint + EVENTS, HEADERS)
        request = self._request
        if request.is_ready(USUAL_ANSWER_S):
            self._request = None
            return self._read(check(request.answer()))
        if time.monotonic() - self._asked_at > self._first_answer_s:
            self.close()
            raise TimeoutError(f"no answer within {self._first_answer_s} s")
        return None

    def acknowledge(self) -> None:
        """Approve the events that concern only this machine. See :class:`~.base.Acknowledging`."""
        if self._own_events:
            document = {"StartRequests": [{"EventId": event_id} for event_id in self._own_events]}
            check(ask(self._endpoint + EVENTS, HEADERS, "POST", json.dumps(document).encode()))

    def close(self) -> None:
        """See :class:`~.base.NoticeSource`."""
        if self._request is not None:
            self._request.close()
            self._request = None

    def _read(self, answer: Answer) -> Announcement | None:
        document = answer.json()
        events = document.get("Events") if isinstance(document, Mapping) else None
        if not isinstance(events, list):
            raise ValueError("no list of events in the answer")
        mine = [event for event in events if self._is_mine(event)]
        deadlines = [_deadline(event, answer.date) for event in mine]
        # An event is not acknowledged if it also names other machines, or if the own name is unknown and the event
        # is only assumed to concern this machine.
        self._own_events = [str(each.get("EventId")) for each in mine if self._own_name and len(each["Resources"]) == 1]
        return Announcement(self.name, min(deadlines)) if deadlines else None

    def _is_mine(self, event: Any) -> bool:
        if not isinstance(event, Mapping) or event.get("EventType") != "Preempt":
            return False
        if not self._own_name:
            try:
                self._own_name = check(ask(self._endpoint + OWN_NAME, HEADERS)).text().casefold()
            except (OSError, HTTPException, UnusableAnswerError, ValueError):
                return True  # a save too many costs less than a missed notice
        return self._own_name in [str(name).casefold() for name in event.get("Resources") or ()]


def _deadline(event: Mapping[str, Any], date: str | None) -> float:
    return deadline_at(event.get("NotBefore"), date, LONGEST_S)  # NotBefore is blank after the event has started
