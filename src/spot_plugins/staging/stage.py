"""The copy of tensors into the shared buffer, as finished blob images."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .buffer import SharedBuffer
from .plan import Layout, Source


def copy_into(buffer: SharedBuffer, layout: Layout, sources: Mapping[str, Source]) -> None:
    """
    Fill *buffer* with the blobs of *layout*. When it returns, *sources* may change.

    The copies of one device run one after another on its current stream; there is one wait at the end.
    """
    devices: set[torch.device] = set()
    for (offset, _), header in zip(layout.blobs, layout.headers, strict=True):
        buffer.bytes[offset : offset + len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
    with torch.no_grad():
        for piece, origin in zip(layout.slices, layout.origins, strict=True):
            tensor = sources[piece.name].in_box(origin.box)
            if piece.lengths:
                tensor = tensor[origin.start : origin.start + origin.rows]
            start = layout.blobs[piece.blob][0] + piece.start
            target = buffer.bytes[start : start + piece.stop - piece.start].view(tensor.dtype)
            target.view(piece.lengths).copy_(tensor, non_blocking=True)
            if tensor.device.type != "cpu":
                devices.add(tensor.device)
    for device in devices:
        torch.accelerator.current_stream(device).synchronize()
