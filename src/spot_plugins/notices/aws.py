"""Notices of EC2 Spot, from the instance metadata service, version 2. They arrive about two minutes ahead."""

from __future__ import annotations

import os
from typing import Final

from .base import Announcement, deadline_at, deadline_in, text_of
from .web import Answer, ask, check

ENDPOINT: Final = "http://169.254.169.254"
ENDPOINT_VARIABLE: Final = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Variable that points AWS's own clients to another metadata service."""

TOKEN_TTL_S: Final = 21600  # the longest that the service allows
LONGEST_S: Final = 120.0


class AwsSource:
    """
    The source of the interruption notice, which is hard, and of the rebalance recommendation, which is soft.

    Args:
        endpoint: Base URL of the service. None: :data:`ENDPOINT_VARIABLE` from the environment, or :data:`ENDPOINT`.
    """

    name = "aws"
    every_s = 5.0  # as AWS advises
    awaited = None

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = (endpoint or os.environ.get(ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")
        self._token: str | None = None
        self._advised_at = ""

    def poll(self) -> Announcement | None:
        """See :class:`~.base.NoticeSource`."""
        if (found := self._get("spot/instance-action")) is not None:
            return Announcement(self.name, _deadline(found))
        if (found := self._get("events/recommendations/rebalance")) is not None:
            advised_at = text_of(found.json(), "noticeTime")
            if advised_at != self._advised_at:
                self._advised_at = advised_at
                return Announcement(f"{self.name} rebalance", None, "soft")
        return None

    def close(self) -> None:
        """See :class:`~.base.NoticeSource`."""

    def _get(self, path: str) -> Answer | None:
        """Return the answer for *path*, or None if the service has nothing there."""
        url = f"{self._endpoint}/latest/meta-data/{path}"
        answer = ask(url, self._headers())
        if answer.status == 401:  # the token has expired, or the service has restarted
            self._token = None
            answer = ask(url, self._headers())
        return None if answer.status == 404 else check(answer)

    def _headers(self) -> dict[str, str]:
        if self._token is None:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S), "Content-Length": "0"}
            answer = ask(f"{self._endpoint}/latest/api/token", headers, "PUT")
            if answer.status in (404, 405):  # only version 1 of the service, which has no tokens
                return {}
            self._token = check(answer).text()
        return {"X-aws-ec2-metadata-token": self._token}


def _deadline(found: Answer) -> float:
    document = found.json()
    if text_of(document, "action") == "hibernate":
        return deadline_in(0.0)  # hibernation begins at once, whatever time the notice names
    return deadline_at(document.get("time"), found.date, LONGEST_S)
