"""Puts that are given up when their bytes stop moving, for a client that has no such timeout."""

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

_LOOKS: Final = 5  # per stall time
_RELEASE_S: Final = 0.01
_COUNTERS: Final = struct.Struct("=QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_COUNTERS_OFFSET: Final = 120

_T = TypeVar("_T")


class WatchedPuts:
    """
    Runs puts, and gives up those whose connection moves no byte for *stall_s* seconds.

    The read timeout of obstore's HTTP client runs from the first byte of a request to the first of the answer, so
    that with it no large object could be put over a slow network. Without it, a server that hangs is waited for.

    Which connection belongs to which put cannot be known, but each put in flight has one. So the oldest puts are
    given up when fewer connections move than there are puts of that age. A connection of somebody else in this
    process can hide that; in a pusher there is none.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._started: list[float] = []
        self._moved: dict[str, tuple[tuple[int, int], float]] = {}

    def run(self, start: Callable[[memoryview], Awaitable[_T]], data: memoryview) -> _T:
        """
        Wait for the put of *data* that *start* begins. When this returns or raises, nothing reads *data* any more.

        Raises:
            TimeoutError: It was given up.
        """
        # A thread of its own: in a notebook the caller's already has a running loop.
        with ThreadPoolExecutor(1, thread_name_prefix="spot-put") as pool:
            return pool.submit(asyncio.run, self._watch(start, data)).result()

    async def _watch(self, start: Callable[[memoryview], Awaitable[_T]], data: memoryview) -> _T:
        view = data[:]
        with self._in_flight() as started:
            put = asyncio.ensure_future(start(view))
            while not (await asyncio.wait({put}, timeout=self._stall_s / _LOOKS))[0]:
                if self._is_stuck(started):
                    put.cancel()  # closes its connection
                    with suppress(asyncio.CancelledError):
                        await put
                    await _until_released(view)
                    raise TimeoutError(f"timeout: no byte moved for {self._stall_s} s")
            return put.result()

    @contextmanager
    def _in_flight(self) -> Iterator[float]:
        started = time.monotonic()
        with self._lock:
            self._started.append(started)
        try:
            yield started
        finally:
            with self._lock:
                self._started.remove(started)

    def _is_stuck(self, started: float) -> bool:
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
    """Wait for the client to let go of *view*, which it does on a thread of its own, a moment after it is told."""
    while True:
        try:
            view.release()
            return
        except BufferError:
            await asyncio.sleep(_RELEASE_S)


def _connections() -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each TCP connection of this process: its name, and how many bytes the peer has taken and sent."""
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile, or no socket, or not connected
            name = os.readlink(f"/proc/self/fd/{entry}")
            if not name.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            if len(info) >= _COUNTERS_OFFSET + _COUNTERS.size:
                yield name, _COUNTERS.unpack_from(info, _COUNTERS_OFFSET)
