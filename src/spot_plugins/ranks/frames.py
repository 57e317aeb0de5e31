"""
The connections of the board: frames of JSON after their length, and what shows that the other end lives.

An empty frame is a beat. The frames of a rank to rank 0 are lists:

- ``[secret, rank]``, the first one
- ``["post", name, value]``
- ``["number", id, name]``
- ``["ask", id, name, number of ranks or null, waits]``
- ``["bye"]``

Rank 0 answers with ``[id, number]``, ``[id, notes, who has ended]``, and ``["end", reason]`` before it closes.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

MAX_NOTE_BYTES: Final = 64 * 2**20
"""Longest frame that a rank may send."""

MAX_ANSWER_BYTES: Final = 2**32 - 1
"""Longest frame of rank 0, which may hold a note of each rank."""

MAX_HELLO_BYTES: Final = 256
"""Longest frame of a stranger."""

VANISHED_S: Final = 30
"""
Seconds after which the kernel gives up a machine that does not answer.

The kernel of the other machine answers also while its process is busy, so a machine is known to be gone sooner than a
process that hangs.
"""

MAX_GAP_S: Final = 2.0
"""Longest time in seconds between two looks at :class:`AwakeClock` that counts."""

_LENGTH: Final = struct.Struct(">I")
_RECEIVED_BYTES: Final = 2**16  # more would be mapped anew by the allocator each time


@dataclass(frozen=True, slots=True)
class Limits:
    """The times of a board, in seconds."""

    beat_s: float = 30.0
    """Time between two beats of a rank. Rank 0 answers each one."""
    silent_s: float = 120.0
    """
    Time without a beat after which a process is lost, though its kernel answers.

    It is this long because a process that loads much data in one call of C may keep Python's lock for a minute.
    """
    connect_s: float = 30.0
    """Longest wait for a connection to rank 0, which may have much to do when a job starts."""
    farewell_s: float = 2.0
    """Longest wait of a rank for the answer to its farewell, and of rank 0 for the farewells of the others."""

    @property
    def tick_s(self) -> float:
        """Longest time that a thread of a board sleeps."""
        return min(1.0, self.beat_s, self.silent_s / 4)


class FrameError(ValueError):
    """Something else than a frame has arrived."""


def frame_of(*values: Any) -> bytes:
    """Return a frame that holds *values*."""
    return framed(json.dumps(values).encode())


def framed(content: bytes) -> bytes:
    """Return *content* as a frame. Without content it is a beat."""
    return _LENGTH.pack(len(content)) + content


BEAT: Final = framed(b"")


class FrameReader:
    """
    Cuts what arrives into frames.

    Args:
        max_bytes: Longest frame.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()

    def receive(self, sock: socket.socket) -> bool:
        """Take what has arrived at *sock*, which does not block. Return False at its end."""
        try:
            # wait: at once; the socket does not block
            received = sock.recv(_RECEIVED_BYTES)
        except (BlockingIOError, InterruptedError):
            return True
        self._buffer += received
        return bool(received)

    def frames(self) -> Iterator[Any]:
        """
        Yield the frames that have arrived whole: a list each, or None for a beat.

        Raises:
            FrameError: A frame is too long, or is no list of JSON.
        """
        start = 0
        try:
            while len(self._buffer) >= start + _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > self.max_bytes:
                    raise FrameError(f"a frame of {length} bytes, where {self.max_bytes} are the most")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    return
                content = bytes(self._buffer[start + _LENGTH.size : end])
                start = end
                yield _decoded(content) if length else None
        finally:
            del self._buffer[:start]


def _decoded(content: bytes) -> list[Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame is not JSON: {error}") from error
    if not isinstance(value, list) or not value:
        raise FrameError("a frame is no list")
    return value


class AwakeClock:
    """
    A clock in seconds that stands still while this process does not run.

    A process that was stopped, or that did not get Python's lock, has not listened for that time. So it must not take
    the others for silent. Its owner looks at it more often than every :data:`MAX_GAP_S`.
    """

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._awake_s = 0.0

    def now(self) -> float:
        """Return the time."""
        looked_at, self._looked_at = self._looked_at, time.monotonic()
        self._awake_s += min(self._looked_at - looked_at, MAX_GAP_S)
        return self._awake_s


_open: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def prepare(sock: socket.socket) -> socket.socket:
    """Return *sock*, which does not block any more, sends at once, and ends if the other machine vanishes."""
    sock.setblocking(False)
    keep(sock)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", VANISHED_S // 3),
            ("TCP_KEEPINTVL", VANISHED_S // 6),
            ("TCP_KEEPCNT", 4),
            ("TCP_USER_TIMEOUT", VANISHED_S * 1000),  # for data that was sent; Linux alone has it
        ):
            with suppress(AttributeError, OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def keep(sock: socket.socket) -> socket.socket:
    """Return *sock*, which a forked child closes. Otherwise a rank would not be seen to end before its data workers."""
    _open.add(sock)
    return sock


def _after_fork_in_child() -> None:
    for sock in _open:
        sock.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
