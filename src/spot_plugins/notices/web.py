"""HTTP to a metadata server: the standard library, no proxy, short timeouts."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPSConnection
from multiprocessing.connection import wait
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S: Final = 2.0
"""Longest wait for a connection or a piece of an answer. A container that may not reach the server gets none."""

MAX_BYTES: Final = 256 * 1024
"""More than any notice has."""


class Answer(NamedTuple):
    """What a server said."""

    status: int
    body: bytes
    date: str | None
    """Its clock, as in the ``Date`` header."""

    def json(self) -> Any:
        """Return the body as JSON. Raises :exc:`ValueError`."""
        return json.loads(self.body)

    def text(self) -> str:
        """Return the body as text, without white space around it. Raises :exc:`ValueError`."""
        return self.body.decode().strip()


class UnusableAnswerError(Exception):
    """The server answered, but not as a metadata server that is well."""


class Request:
    """
    A request that is on its way. Its answer may take long, so it can be waited for elsewhere.

    Raises:
        OSError: No connection.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, method: str = "GET", body: bytes | None = None
    ) -> None:
        parts = urlsplit(url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        try:
            target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
            self._connection.request(method, target, body, headers={"Connection": "close", **(headers or {})})
        except BaseException:
            self._connection.close()
            raise

    @property
    def socket(self) -> socket.socket:
        """Where the answer will come."""
        return self._connection.sock

    def is_ready(self, within_s: float = 0.0) -> bool:
        """Whether the answer begins to come *within_s* seconds."""
        return bool(wait([self._connection.sock], within_s))

    def answer(self) -> Answer:
        """
        Return the answer, and close.

        Raises:
            OSError: It does not come, or not whole.
            HTTPException: It is no HTTP.
        """
        try:
            response = self._connection.getresponse()
            return Answer(response.status, response.read(MAX_BYTES), response.headers.get("Date"))
        finally:
            self._connection.close()

    def close(self) -> None:
        """Give up."""
        self._connection.close()


def ask(url: str, headers: Mapping[str, str] | None = None, method: str = "GET", body: bytes | None = None) -> Answer:
    """Return the answer to one request, whatever its status. Raises as :class:`Request` does."""
    return Request(url, headers, method, body).answer()


def check(answer: Answer) -> Answer:
    """Return *answer* if its status is 200; else raise :exc:`UnusableAnswerError`."""
    if answer.status != 200:
        raise UnusableAnswerError(f"status {answer.status}")
    return answer
