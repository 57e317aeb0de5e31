"""
A device with streams that needs no GPU: copies are queued and done later, counted, held up, and refused.

Its memory is the memory of the CPU. So every CPU tensor is on it while it stands in ``devices.DEVICES`` under ``cpu``.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque

import torch

from spot_plugins.save import devices

INVALID_VALUE = 1  # cudaErrorInvalidValue
MAX_HELD_UP_S = 60.0


class Moment:
    """An event: the place after the work that a stream had when it was recorded."""

    def __init__(self, stream, number):
        self.stream = stream
        self.number = number

    def synchronize(self):
        device = self.stream.device
        assert device.may_work.wait(MAX_HELD_UP_S)
        device.do(self)


class Stream:
    """Work that is done when somebody waits for it, on the thread that waits. The current stream does it at once."""

    def __init__(self, device, *, is_current):
        self.device = device
        self.is_current = is_current
        self.num_queued = 0
        self.num_done = 0
        self.work = deque()

    def put(self, action):
        self.num_queued += 1
        self.work.append(action)
        if self.is_current:
            self.device.do(self.record_event())

    def record_event(self):
        return Moment(self, self.num_queued)

    def wait_event(self, event):
        self.put(lambda: self.device.do(event))


class EmulatedDevice:
    """
    A strict device: what some drivers allow, this one refuses.

    - A copy is done as late as it may be: when somebody waits for it, or when the current stream has to. The current
      stream does everything at once (``num_at_once``).
    - A copy into memory that is not pinned is done at once, and counted in ``num_blocking``.
    - A copy into memory of which a part is pinned fails, and so does one that crosses from one pinned piece to another.
    - An error of a call stays set in its thread. The next work that the thread queues raises it.

    Clear ``may_work`` to hold the device up. Set ``captures`` for the capture of a graph. Set ``refuses_to_pin``, or
    ``fails``, which ends all work from now on.
    """

    def __init__(self):
        self.may_work = threading.Event()
        self.may_work.set()
        self.refuses_to_pin = False
        self.fails = False
        self.captures = False
        self.num_copies = 0
        self.num_at_once = 0
        self.num_blocking = 0
        self.pinned = {}
        self.pin_threads = set()
        self._doing = threading.RLock()
        self._current = Stream(self, is_current=True)
        self._last_error = threading.local()

    def is_used(self):
        return True

    def is_capturing(self):
        return self.captures

    def current_stream(self, device):
        return self._current

    def make_stream(self, device):
        return Stream(self, is_current=False)

    def fetch(self, stream, gather):
        self.num_blocking += 1
        found = []
        self._put(stream, lambda: found.append(gather().clone()))
        stream.record_event().synchronize()
        return found[0]

    def _put(self, stream, action):
        if getattr(self._last_error, "code", 0):
            code, self._last_error.code = self._last_error.code, 0
            raise RuntimeError(f"error {code} of an earlier call")
        stream.put(action)

    def copy(self, stream, target, source):
        lies = self._lies(target)
        if lies == "across":
            raise RuntimeError("invalid argument: the memory lies in more than one pinned piece")
        self.num_at_once += stream.is_current
        self._put(stream, lambda: self._copy(target, source))
        if lies == "outside":
            self.num_blocking += 1
            self.do(stream.record_event())

    def pin(self, address, num_bytes):
        self.pin_threads.add(threading.current_thread().name)
        overlaps = any(start < address + num_bytes and address < start + size for start, size in self.pinned.items())
        if self.refuses_to_pin or overlaps:
            self._last_error.code = INVALID_VALUE
            return INVALID_VALUE
        self.pinned[address] = num_bytes
        return 0

    def unpin(self, address):
        self.pin_threads.add(threading.current_thread().name)
        del self.pinned[address]

    def clear_error(self):
        self._last_error.code = 0

    def do(self, moment):
        """Do the work of a stream before *moment*."""
        stream = moment.stream
        with self._doing, torch.no_grad():
            while stream.num_done < moment.number:
                if self.fails:
                    raise RuntimeError("the device fails")
                stream.work.popleft()()
                stream.num_done += 1

    def _copy(self, target, source):
        self.num_copies += 1
        target.copy_(source)

    def _lies(self, target):
        first, last = target.data_ptr(), target.data_ptr() + target.nbytes
        touched = [
            (start, start + size) for start, size in self.pinned.items() if start < last and first < start + size
        ]
        if not touched and target.nbytes:
            return "outside"
        return "inside" if all(start <= first and last <= end for start, end in touched) else "across"


@contextlib.contextmanager
def emulated_device():
    """Let CPU tensors be on an emulated device meanwhile. Whoever still waits for it is let go."""
    device = EmulatedDevice()
    devices.DEVICES["cpu"] = device
    try:
        yield device
    finally:
        device.may_work.set()
        del devices.DEVICES["cpu"]
