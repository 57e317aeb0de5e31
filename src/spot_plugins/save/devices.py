"""Devices that copy on their own, with their streams, events and pinned host memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol, cast

import torch

_FOR_ALL_DEVICES: Final = 1  # cudaHostRegisterPortable


class Event(Protocol):
    """A moment in the work of a stream."""

    def synchronize(self) -> None:
        """Wait until the device has done the work before this moment. Raise :exc:`RuntimeError` if it cannot."""
        ...


class Stream(Protocol):
    """A queue of work. A device does it in order."""

    def record_event(self) -> Event:
        """Return the moment after everything that is queued now."""
        ...

    def wait_event(self, event: Event) -> None:
        """Let all later work of this stream begin after *event*. Waits for nothing itself."""
        ...


class Device(Protocol):
    """
    One type of device, such as CUDA.

    A stream does its work in order, at any later time. A copy has the values that its source has at that time. Two
    streams know nothing of each other, except for the events that one of them waits for. All methods are safe on any
    thread. A copy into memory that is not pinned may be waited for.
    """

    def is_used(self) -> bool:
        """Return whether this process uses such a device."""
        ...

    def is_capturing(self) -> bool:
        """Return whether the work of this thread is captured as a graph, and not done."""
        ...

    def current_stream(self, device: torch.device) -> Stream:
        """Return the stream in which this thread computes."""
        ...

    def make_stream(self, device: torch.device) -> Stream:
        """Return a new stream."""
        ...

    def copy(self, stream: Stream, target: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy of *source*. *target* lies in one pinned piece of host memory, or nothing of it is pinned."""
        ...

    def fetch(self, stream: Stream, gather: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Queue the work of *gather* and one copy of its result. Wait for the copy and return it."""
        ...

    def pin(self, address: int, num_bytes: int) -> int:
        """Pin host memory, so that no copy into it is waited for. Return 0, or the error of a driver that refuses."""
        ...

    def clear_error(self) -> None:
        """Read away the error of :meth:`pin` on this thread, which the next work of this thread would raise."""
        ...

    def unpin(self, address: int) -> None:
        """End what :meth:`pin` has begun at *address*. No copy into the memory may be queued."""
        ...


class Cuda:
    """CUDA devices."""

    def is_used(self) -> bool:
        """See :meth:`Device.is_used`."""
        return torch.cuda.is_initialized()  # type: ignore[no-untyped-call, no-any-return]

    def is_capturing(self) -> bool:
        """See :meth:`Device.is_capturing`."""
        return torch.cuda.is_current_stream_capturing()

    def current_stream(self, device: torch.device) -> Stream:
        """See :meth:`Device.current_stream`."""
        return cast("Stream", torch.cuda.current_stream(device))

    def make_stream(self, device: torch.device) -> Stream:
        """See :meth:`Device.make_stream`."""
        return cast("Stream", torch.cuda.Stream(device))  # type: ignore[no-untyped-call]

    def copy(self, stream: Stream, target: torch.Tensor, source: torch.Tensor) -> None:
        """See :meth:`Device.copy`."""
        with torch.cuda.stream(cast("torch.cuda.Stream", stream)):
            target.copy_(source, non_blocking=True)

    def fetch(self, stream: Stream, gather: Callable[[], torch.Tensor]) -> torch.Tensor:
        """See :meth:`Device.fetch`."""
        with torch.cuda.stream(cast("torch.cuda.Stream", stream)):
            found = gather().to("cpu", non_blocking=True)
        # wait: until the device has copied; a device that hangs stops the training itself
        stream.record_event().synchronize()
        return found

    def pin(self, address: int, num_bytes: int) -> int:
        """See :meth:`Device.pin`."""
        return int(_cudart().cudaHostRegister(address, num_bytes, _FOR_ALL_DEVICES))

    def clear_error(self) -> None:
        """See :meth:`Device.clear_error`."""
        # torch has no cudaGetLastError(). It is what every kernel calls after its launch.
        with suppress(RuntimeError):
            torch.ones(1, device="cuda")

    def unpin(self, address: int) -> None:
        """See :meth:`Device.unpin`."""
        _cudart().cudaHostUnregister(address)


DEVICES: Final[dict[str, Device]] = {"cuda": Cuda()}
"""By torch's name of the type. A device that is missing copies while the training waits."""


def is_capturing() -> bool:
    """Return whether the work of this thread on any device is captured as a graph."""
    return any(kind.is_used() and kind.is_capturing() for kind in DEVICES.values())


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
