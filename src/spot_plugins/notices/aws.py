"""EC2 Spot: the instance metadata service, version 2. A notice comes about two minutes ahead."""

from __future__ import annotations

import os
from typing import Final

from .base import Announcement, deadline_at, deadline_in, text_of
from .web import Answer, ask, check

ENDPOINT: Final = "http://169.254.169.254"
ENDPOINT_VARIABLE: Final = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""The variable by which AWS's own clients are led to another metadata service."""

TOKEN_TTL_S: Final = 21600  # the most there is
LONGEST_S: Final = 120.0


class AwsSource:
    """
    The interruption notice, which is hard, and the rebalance recommendation, which is soft.

    Args:
        endpoint: Base URL of the service. None: that of the environment, or the usual one.
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
        """Return what there is at *path*, None if there is nothing."""
        url = f"{self._endpoint}/latest/meta-data/{path}"
        answer = ask(url, self._headers())
        if answer.status == 401:  # the token has expired, or the service has forgotten it
            self._token = None
            answer = ask(url, self._headers())
        return None if answer.status == 404 else check(answer)

    def _headers(self) -> dict[str, str]:
        if self._token is None:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S), "Content-Length": "0"}
            answer = ask(f"{self._endpoint}/latest/api/token", headers, "PUT")
            if answer.status in (404, 405):  # version 1 only: it has no tokens
                return {}
            self._token = check(answer).text()
        return {"X-aws-ec2-metadata-token": self._token}


def _deadline(found: Answer) -> float:
    document = found.json()
    if text_of(document, "action") == "hibernate":
        return deadline_in(0.0)  # it begins at once, whatever the time says
    return deadline_at(document.get("time"), found.date, LONGEST_S)
