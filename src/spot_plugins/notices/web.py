"""HTTP requests to a metadata server, with the standard library, without a proxy and with short timeouts."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from multiprocessing.connection import wait
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S: Final = 2.0
"""Longest wait in seconds for a connection, and again for the whole answer. Some containers cannot reach the server."""

MAX_BYTES: Final = 256 * 1024
"""Largest answer that is read. It is larger than any notice."""


class Answer(NamedTuple):
    """The answer of a server."""

    status: int
    body: bytes
    date: str | None
    """The ``Date`` header, which shows the server's clock."""
    length: str | None
    """The ``Content-Length`` header. A body that was cut off is shorter."""

    def json(self) -> Any:
        """Return the body as JSON. Raises :exc:`ValueError`."""
        return json.loads(self.body)

    def text(self) -> str:
        """Return the body as text, stripped of white space. Raises :exc:`ValueError`."""
        return self.body.decode().strip()


class _TimedReader(io.RawIOBase):
    """The bytes of *sock* until *deadline* (monotonic). A timeout of the socket alone begins anew with every byte."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open, as a connection closes it after the head
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if (left_s := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError("the answer did not end in time")
        self._sock.settimeout(left_s)
        # wait: until the deadline of the whole answer; the request has failed
        return self._file.readinto(buffer) or 0

    def close(self) -> None:
        self._file.close()
        super().close()


class TimedSocket:
    """The one method of a socket that a response uses. The whole answer has to arrive by *deadline* (monotonic)."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._reader = _TimedReader(sock, deadline)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a reader of the socket's bytes. It keeps the socket open."""
        return io.BufferedReader(self._reader)


class UnusableAnswerError(Exception):
    """An answer that a healthy metadata server does not give."""


class Request:
    """
    A request that was sent. The caller may wait for the answer on :attr:`socket`.

    Raises:
        OSError: The connection failed.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, method: str = "GET", body: bytes | None = None
    ) -> None:
        split = urlsplit(url)
        kind = HTTPSConnection if split.scheme == "https" else HTTPConnection
        self._connection = kind(split.hostname or "", split.port, timeout=TIMEOUT_S)
        try:
            target = f"{split.path or '/'}?{split.query}" if split.query else split.path or "/"
            # wait: TIMEOUT_S for the connection, and for each send; the source has failed and is polled again
            self._connection.request(method, target, body, headers={"Connection": "close", **(headers or {})})
        except BaseException:
            self._connection.close()
            raise

    @property
    def socket(self) -> socket.socket:
        """The socket on which the answer will arrive."""
        return self._connection.sock

    def is_ready(self, within_s: float = 0.0) -> bool:
        """Return True if the answer begins to arrive within *within_s* seconds."""
        # wait: within_s of the caller; there is no answer yet
        return bool(wait([self._connection.sock], within_s))

    def answer(self) -> Answer:
        """
        Return the answer and close the connection.

        Raises:
            OSError: The answer does not arrive in time, or is cut off.
            HTTPException: The answer is not HTTP.
        """
        deadline = time.monotonic() + TIMEOUT_S

        def timed_response(sock: socket.socket, **settings: Any) -> HTTPResponse:
            timed: Any = TimedSocket(sock, deadline)
            return HTTPResponse(timed, **settings)

        try:
            self._connection.response_class = timed_response  # type: ignore[assignment]
            # wait: TIMEOUT_S; the source has failed and is polled again
            response = self._connection.getresponse()
            body, headers = response.read(MAX_BYTES), response.headers
            return Answer(response.status, body, headers.get("Date"), headers.get("Content-Length"))
        finally:
            self._connection.close()

    def close(self) -> None:
        """Close the connection without reading the answer."""
        self._connection.close()


def ask(url: str, headers: Mapping[str, str] | None = None, method: str = "GET", body: bytes | None = None) -> Answer:
    """Return the answer to one request, whatever its status. Raises as :class:`Request` does."""
    return Request(url, headers, method, body).answer()


def check(answer: Answer) -> Answer:
    """Return *answer* if its status is 200, else raise :exc:`UnusableAnswerError`."""
    if answer.status != 200:
        raise UnusableAnswerError(f"status {answer.status}")
    return answer
