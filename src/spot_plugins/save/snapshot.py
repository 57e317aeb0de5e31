"""The copy of tensors into the shared buffer, as finished blob images: what may change at once, and what may wait."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping

import torch

from ..state.live_tensor import Changes, LiveTensor
from .layout import Layout
from .shared_buffer import SharedBuffer


class Snapshot:
    """
    One copy of live tensors into a buffer. Made on the training thread; :meth:`complete` may come on another.

    When it is made, everything is copied that may change before the next optimizer step. What only such a step
    changes is copied by :meth:`complete`, and must not change before :attr:`is_torn` was asked.
    """

    def __init__(self, buffer: SharedBuffer, layout: Layout, sources: Mapping[str, LiveTensor]) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._late: list[tuple[SharedBuffer, int, torch.Tensor]] = []
        self._versions: list[tuple[str, torch.Tensor, int]] = []
        self._begun: dict[torch.device, torch.cuda.Event] = {}
        self._copied: dict[torch.device, torch.cuda.Event] = {}
        self.add(buffer, layout, sources)

    def add(self, buffer: SharedBuffer, layout: Layout, sources: Mapping[str, LiveTensor]) -> None:
        """Fill *buffer* with the blobs of *layout*; what can wait is left to :meth:`issue`."""
        for (offset, _), header in zip(layout.blobs, layout.headers, strict=True):
            ctypes.memmove(buffer.address + offset, header, len(header))
        devices = set()
        with torch.no_grad():
            for start, tensor, changes in pieces_in(layout, sources):
                devices.add(tensor.device)
                if changes is Changes.IN_STEP:
                    self._late.append((buffer, start, tensor))
                else:
                    _copy(buffer, start, tensor)
        for device in devices:
            if device.type == "cuda":
                # Behind this, in the order of the training's own stream, everything is as it is now.
                self._begun[device] = torch.cuda.current_stream(device).record_event()
                self._streams[device] = buffer.stream(device)
            elif device.type != "cpu":
                torch.accelerator.current_stream(device).synchronize()
        for name, source in sources.items():
            if source.changes is Changes.IN_STEP:
                self._versions.append((name, source.tensor, source.tensor._version))

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to do, not even to wait for a device."""
        return not self._late and not self._begun

    def issue(self) -> None:
        """
        Copy the rest; on a CUDA device, put the copies into a stream of their own.

        Behind it tensors may change, on a CUDA device only behind :meth:`hold_back`.
        """
        for device, stream in self._streams.items():
            stream.wait_event(self._begun[device])
        with torch.no_grad():
            for buffer, start, tensor in self._late:
                if tensor.is_cuda:
                    with torch.cuda.stream(self._streams[tensor.device]):
                        _copy(buffer, start, tensor)
                else:
                    _copy(buffer, start, tensor)
        self._copied = {device: stream.record_event() for device, stream in self._streams.items()}

    def hold_back(self) -> None:
        """Let each device finish the copies that :meth:`issue` has put there before it does what comes next."""
        for device, copied in self._copied.items():
            torch.cuda.current_stream(device).wait_event(copied)

    def torn(self) -> str | None:
        """Return the name of a tensor that has changed since the copy began, as far as torch knows, or None."""
        return next((name for name, tensor, version in self._versions if tensor._version != version), None)

    def wait(self) -> None:
        """Wait until the devices have done it all."""
        for copied in self._copied.values():
            copied.synchronize()


def _copy(buffer: SharedBuffer, start: int, tensor: torch.Tensor) -> None:
    if tensor.is_cpu and tensor.is_contiguous():
        # Not torch: on another thread than training's it would start a second team of threads on the same cores.
        ctypes.memmove(buffer.address + start, tensor.data_ptr(), tensor.nbytes)
        return
    target = buffer.bytes[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    target.copy_(tensor, non_blocking=True)


def pieces_in(layout: Layout, sources: Mapping[str, LiveTensor]) -> Iterator[tuple[int, torch.Tensor, Changes]]:
    """Yield where in the buffer each slice begins, its elements, and when they may change."""
    for piece, origin in zip(layout.slices, layout.origins, strict=True):
        source = sources[piece.name]
        tensor = source.in_box(origin.box)
        if piece.lengths and origin.rows != tensor.shape[0]:
            tensor = tensor[origin.start : origin.start + origin.rows]
        yield layout.blobs[piece.blob][0] + piece.start, tensor, source.changes
