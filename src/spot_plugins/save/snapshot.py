"""Copy of live tensors into a shared buffer, as finished images of blobs."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch

from ..format.manifest import TensorSlice
from ..state.collection import no_collection
from ..state.live_tensor import Changes, LiveTensor
from .devices import DEVICES, Event, Stream
from .layout import Layout, Origin
from .shared_buffer import PIECE_BYTES, SharedBuffer


class Snapshot:
    """
    One copy of live tensors into a buffer. It is made on the training thread; another one may call :meth:`issue`.

    The constructor copies every tensor that may change before the next optimizer step. :meth:`issue` copies those that
    only such a step changes. They must not change before :meth:`hold_back`, or before everything is copied.
    """

    def __init__(self, buffer: SharedBuffer, layout: Layout, tensors: Mapping[str, LiveTensor]) -> None:
        self._streams: dict[torch.device, Stream] = {}
        self._late: list[tuple[SharedBuffer, int, torch.Tensor]] = []
        self._versions: list[tuple[str, torch.Tensor, int]] = []
        self._watching = threading.Lock()
        self._is_watched = True
        self.torn: str | None = None
        """The name of a tensor that had changed by :meth:`end_watch`, as far as torch knows, or None."""
        self._begun: dict[torch.device, Event] = {}
        self._copied: dict[torch.device, Event] = {}
        self.add(buffer, layout, tensors)

    def add(self, buffer: SharedBuffer, layout: Layout, tensors: Mapping[str, LiveTensor]) -> None:
        """Fill *buffer* with the blobs of *layout*, except for the tensors that :meth:`issue` copies."""
        for (offset, _), header in zip(layout.blobs, layout.headers, strict=True):
            ctypes.memmove(buffer.address + offset, header, len(header))
        devices = set()
        with torch.no_grad(), no_collection():
            for piece, origin in _joined(layout, tensors):
                start, tensor, changes = _piece(layout, tensors, piece, origin)
                devices.add(tensor.device)
                if changes is Changes.IN_STEP:
                    self._late.append((buffer, start, tensor))
                else:
                    _copy(buffer, start, tensor)
        self.begin_on(devices, buffer)
        for name, live in tensors.items():
            if live.changes is Changes.IN_STEP:
                self._versions.append((name, live.tensor, live.tensor._version))

    def begin_on(self, devices: Iterable[torch.device], buffer: SharedBuffer) -> None:
        """Let the stream of *buffer* on each of *devices* begin after all that the training has queued there."""
        for device in devices:
            if (kind := DEVICES.get(device.type)) is not None:
                # In the order of the training's own stream, everything after this event is as it is now.
                self._begun[device] = kind.current_stream(device).record_event()
                self._streams[device] = buffer.stream(device)
            elif device.type != "cpu":
                # wait: until the device has copied; a device that hangs stops the training itself
                torch.accelerator.current_stream(device).synchronize()

    @property
    def is_complete(self) -> bool:
        """True if everything is copied, and no device has to be waited for."""
        return not self._late and not self._begun

    def issue(self) -> None:
        """
        Copy the rest. On a device with streams, put the copies into a stream of their own.

        Afterwards tensors may change, those on such a device only after :meth:`hold_back`.
        """
        for device, stream in self._streams.items():
            stream.wait_event(self._begun[device])
        with torch.no_grad():
            for buffer, start, tensor in self._late:
                _copy(buffer, start, tensor, self._streams.get(tensor.device))
        self._copied = {device: stream.record_event() for device, stream in self._streams.items()}
        if not self._copied:
            self.end_watch()

    def hold_back(self) -> None:
        """
        Let each device finish the copies that :meth:`issue` has given it before its next work.

        From now on tensors may change. Those that have changed already are torn, because the copies may still run.
        """
        self.end_watch()
        for device, copied in self._copied.items():
            DEVICES[device.type].current_stream(device).wait_event(copied)

    def end_watch(self) -> None:
        """Look for a tensor that has changed since the copy began, once. A later change is allowed."""
        with self._watching:
            if self._is_watched:
                self._is_watched = False
                changed = (name for name, tensor, version in self._versions if tensor._version != version)
                self.torn = next(changed, None)

    def wait(self) -> None:
        """Wait until the devices have finished all copies. From then on tensors may change."""
        for copied in self._copied.values():
            # wait: until the device has copied; a device that hangs stops the training itself
            copied.synchronize()
        self.end_watch()


def _copy(buffer: SharedBuffer, start: int, tensor: torch.Tensor, stream: Stream | None = None) -> None:
    """Copy *tensor* into *buffer*. On a device with streams, queue the copy in *stream*, by default the current one."""
    kind = DEVICES.get(tensor.device.type)
    if kind is None and tensor.is_cpu and tensor.is_contiguous():
        # Not torch: on the copying thread it would start a second team of threads on the same cores.
        ctypes.memmove(buffer.address + start, tensor.data_ptr(), tensor.nbytes)
        return
    for first, part in _cut(start, tensor):
        target = buffer.bytes[first : first + part.nbytes].view(part.dtype).view(part.shape)
        if kind is None:
            target.copy_(part, non_blocking=True)
        else:
            kind.copy(stream or kind.current_stream(part.device), target, part)


def _cut(start: int, tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield parts of *tensor* of which none crosses the end of a pinned piece, and their starts in the buffer."""
    room = PIECE_BYTES - start % PIECE_BYTES
    if tensor.nbytes <= room:
        yield start, tensor
        return
    row_bytes = tensor[0].nbytes
    num_rows, crosses = divmod(room, row_bytes)
    rest = [tensor[num_rows], tensor[num_rows + 1 :]] if crosses else [tensor[num_rows:]]
    for part in (tensor[:num_rows], *rest):
        if part.nbytes:
            yield from _cut(start, part)
        start += part.nbytes


def pieces_in(layout: Layout, tensors: Mapping[str, LiveTensor]) -> Iterator[tuple[int, torch.Tensor, Changes]]:
    """Yield the start of each slice in the buffer, its elements, and the moments at which they may change."""
    for piece, origin in zip(layout.slices, layout.origins, strict=True):
        yield _piece(layout, tensors, piece, origin)


def _piece(
    layout: Layout, tensors: Mapping[str, LiveTensor], piece: TensorSlice, origin: Origin
) -> tuple[int, torch.Tensor, Changes]:
    live = tensors[piece.name]
    tensor = live.in_box(origin.box)
    if piece.lengths and origin.rows != tensor.shape[0]:
        tensor = tensor[origin.start : origin.start + origin.rows]
    return layout.blobs[piece.blob][0] + piece.start, tensor, live.changes


def _joined(layout: Layout, tensors: Mapping[str, LiveTensor]) -> Iterator[tuple[TensorSlice, Origin]]:
    """
    Yield the slices, and as one those that are side by side in a blob, so that a device has fewer copies to do.

    Slices of a tensor that is not contiguous stay apart, because a device copies them through memory of their size.
    """
    joined: tuple[TensorSlice, Origin] | None = None
    for piece, origin in zip(layout.slices, layout.origins, strict=True):
        if joined is not None:
            before, first = joined
            if (
                before.name == piece.name
                and (before.blob, before.stop) == (piece.blob, piece.start)
                and (first.box, first.start + first.rows) == (origin.box, origin.start)
                and tensors[piece.name].in_box(origin.box).is_contiguous()
            ):
                joined = replace(before, stop=piece.stop), first._replace(rows=first.rows + origin.rows)
                continue
            yield joined
        joined = piece, origin
    if joined is not None:
        yield joined
