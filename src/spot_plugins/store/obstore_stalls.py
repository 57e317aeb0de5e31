"""Stall timeout for puts through obstore, whose HTTP client has no such timeout."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

_NUM_CHECKS: Final = 5  # per stall time
_RELEASE_S: Final = 0.01  # between two checks that the client has released the memory
_COUNTERS: Final = struct.Struct("=QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_COUNTERS_OFFSET: Final = 120

_T = TypeVar("_T")


class StallGuard:
    """
    Guard that runs puts, and gives up a put if its connection moves no byte for *stall_s* seconds.

    The read timeout of obstore's HTTP client begins with the first byte of a request and ends with the first byte of
    the answer. With this timeout a slow network could not put a large object. Without any timeout a put would wait for
    ever for a server that hangs.

    obstore does not show which connection belongs to which put, but each put in flight has one connection. Therefore a
    put that is older than *stall_s* is given up if fewer connections move than there are puts of that age. Another
    moving connection of this process can hide a stall. The pusher process has no others.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._started: list[float] = []
        self._moved: dict[str, tuple[tuple[int, int], float]] = {}

    def run(self, start: Callable[[memoryview], Awaitable[_T]], data: memoryview) -> _T:
        """
        Put *data* with *start*, and wait for the end. After this returns or raises, nothing reads *data* any more.

        Raises:
            TimeoutError: The put was given up.
        """
        # A thread of its own, because in a notebook the caller's thread already has a running event loop.
        with ThreadPoolExecutor(1, thread_name_prefix="spot-put") as pool:
            # wait: until the put ends or no byte has moved for stall_s; the put is given up
            return pool.submit(asyncio.run, self._put(start, data)).result()

    async def _put(self, start: Callable[[memoryview], Awaitable[_T]], data: memoryview) -> _T:
        view = data[:]
        with self._in_flight() as started:
            put = asyncio.ensure_future(start(view))
            # wait: a part of stall_s; it looks whether a byte has moved
            while not (await asyncio.wait({put}, timeout=self._stall_s / _NUM_CHECKS))[0]:
                if self._is_stuck(started):
                    put.cancel()  # closes its connection
                    with suppress(asyncio.CancelledError):
                        await put
                    await _until_released(view)
                    raise TimeoutError(f"no byte moved for {self._stall_s} s")
            # wait: at once; the put has ended
            return put.result()

    @contextmanager
    def _in_flight(self) -> Iterator[float]:
        """Count a put as in flight during the ``with`` block. Yields its start."""
        started = time.monotonic()
        with self._lock:
            self._started.append(started)
        try:
            yield started
        finally:
            with self._lock:
                self._started.remove(started)

    def _is_stuck(self, started: float) -> bool:
        """Return whether the put that began at *started* has to be given up."""
        now = time.monotonic()
        with self._lock:
            self._moved = {
                name: self._moved[name] if name in self._moved and self._moved[name][0] == counters else (counters, now)
                for name, counters in _connections()
            }
            moving = sum(now - at < self._stall_s for _, at in self._moved.values())
            old = sum(now - each >= self._stall_s for each in self._started)
        return now - started >= self._stall_s and moving < old


async def _until_released(view: memoryview) -> None:
    """Wait until the client has released *view*. It does so on a thread of its own, shortly after a put is canceled."""
    while True:
        try:
            view.release()
            return
        except BufferError:
            # wait: until the client has let go of the memory, which it does after a canceled put; it looks again
            await asyncio.sleep(_RELEASE_S)


def _connections() -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name of each TCP connection of this process, and the bytes acknowledged and received on it."""
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile, not a socket, or not connected
            name = os.readlink(f"/proc/self/fd/{entry}")
            if not name.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            if len(info) >= _COUNTERS_OFFSET + _COUNTERS.size:
                yield name, _COUNTERS.unpack_from(info, _COUNTERS_OFFSET)
