"""The copy of tensors into the shared buffer, as finished blob images: what may change at once, and what may wait."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping

import torch

from .buffer import SharedBuffer
from .plan import Changes, Layout, Source


class Snapshot:
    """
    One copy of live tensors into a buffer. Made on the training thread; :meth:`complete` may come on another.

    When it is made, everything is copied that may change before the next optimizer step. What only such a step
    changes is copied by :meth:`complete`, and must not change before :attr:`is_torn` was asked.
    """

    def __init__(self, buffer: SharedBuffer, layout: Layout, sources: Mapping[str, Source]) -> None:
        self._buffer = buffer
        self._layout = layout
        self._late: list[tuple[int, torch.Tensor]] = []
        self._versions = [(name, source.tensor, source.tensor._version) for name, source in _changing(sources)]
        self._devices = {source.tensor.device for source in sources.values() if source.tensor.is_cuda}
        self._copied: dict[torch.device, torch.cuda.Event] = {}
        for (offset, _), header in zip(layout.blobs, layout.headers, strict=True):
            ctypes.memmove(buffer.address + offset, header, len(header))
        elsewhere = set()
        with torch.no_grad():
            for start, tensor, changes in _pieces(layout, sources):
                if changes is Changes.IN_STEP:
                    self._late.append((start, tensor))
                    continue
                self._copy(start, tensor)
                if tensor.device.type not in ("cpu", "cuda"):
                    elsewhere.add(tensor.device)
        for device in elsewhere:
            torch.accelerator.current_stream(device).synchronize()
        # Behind this, in the order of the training's own stream, everything is as it was when the copy began.
        self._begun = {device: torch.cuda.current_stream(device).record_event() for device in self._devices}

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to do, not even to wait for a device."""
        return not self._late and not self._devices

    def issue(self) -> None:
        """
        Copy the rest; on a CUDA device, put the copies into a stream of their own.

        Behind it tensors may change, on a CUDA device only behind :meth:`hold_back`.
        """
        streams = {device: self._buffer.stream(device) for device in self._devices}
        for device, stream in streams.items():
            stream.wait_event(self._begun[device])
        with torch.no_grad():
            for start, tensor in self._late:
                if tensor.is_cuda:
                    with torch.cuda.stream(streams[tensor.device]):
                        self._copy(start, tensor)
                else:
                    self._copy(start, tensor)
        self._copied = {device: stream.record_event() for device, stream in streams.items()}

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

    def _copy(self, start: int, tensor: torch.Tensor) -> None:
        if tensor.is_cpu and tensor.is_contiguous():
            # Not torch: on another thread than training's it would start a second team of threads on the same cores.
            ctypes.memmove(self._buffer.address + start, tensor.data_ptr(), tensor.nbytes)
            return
        target = self._buffer.bytes[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        target.copy_(tensor, non_blocking=True)


def _pieces(layout: Layout, sources: Mapping[str, Source]) -> Iterator[tuple[int, torch.Tensor, Changes]]:
    """Yield where in the buffer each slice begins, its elements, and when they may change."""
    for piece, origin in zip(layout.slices, layout.origins, strict=True):
        source = sources[piece.name]
        tensor = source.in_box(origin.box)
        if piece.lengths and origin.rows != tensor.shape[0]:
            tensor = tensor[origin.start : origin.start + origin.rows]
        yield layout.blobs[piece.blob][0] + piece.start, tensor, source.changes


def _changing(sources: Mapping[str, Source]) -> Iterator[tuple[str, Source]]:
    return ((name, source) for name, source in sources.items() if source.changes is Changes.IN_STEP)
