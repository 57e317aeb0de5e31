"""What is not trained: stored once, as long as nothing shows that it changes after all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import torch

from ..state.dtypes import TORCH_DTYPES
from ..state.live_tensor import LiveTensor
from .layout import Layout
from .shared_buffer import SharedBuffer
from .snapshot import pieces_in

_SAMPLES: Final = 16

_Place: TypeAlias = "tuple[int, int, torch.Size, tuple[int, ...]]"


class FrozenSet:
    """
    Remembers frozen tensors as they were staged, and finds out whether they are still the same.

    A momentum encoder has no gradients either, but changes in every step. A change by an in-place operation is seen
    by the tensor's version, a change of the memory by its address. What goes past both (in place, through
    ``.data``) is seen by a sample of the values, :data:`_SAMPLES` of every slice of at most 8 MiB.
    """

    def __init__(self, number: int, layout: Layout, sources: Mapping[str, LiveTensor]) -> None:
        """Remember where *sources* are, while they are copied by *layout*. :meth:`remember` follows."""
        self.number = number
        """Name of this set of blobs between trainer and pusher."""
        self._layout = layout
        self._places = _places_of(sources)
        self._samples: list[torch.Tensor] = []

    def remember(self, buffer: SharedBuffer) -> None:
        """Take the sample from the copy in *buffer*, which is complete."""
        for piece in self._layout.slices:
            first = self._layout.blobs[piece.blob][0]
            image = buffer.bytes[first + piece.start : first + piece.stop].view(TORCH_DTYPES[piece.dtype])
            self._samples.append(_sample(image).clone())

    def is_of(self, layout: Layout) -> bool:
        """Return whether this is about tensors of that *layout*."""
        return layout is self._layout

    def is_in_place(self, sources: Mapping[str, LiveTensor]) -> bool:
        """Return whether *sources* are the same tensors, unchanged as far as torch knows. Takes microseconds each."""
        return self._places == _places_of(sources)

    def has_same_values(self, sources: Mapping[str, LiveTensor]) -> bool:
        """Return whether the sample of their values is the same. Waits for their devices."""
        found = (_sample(tensor.reshape(-1)) for _, tensor, _ in pieces_in(self._layout, sources))
        return all(
            torch.equal(_as_bytes(live.cpu()), _as_bytes(kept)) for live, kept in zip(found, self._samples, strict=True)
        )


def _places_of(sources: Mapping[str, LiveTensor]) -> dict[str, _Place]:
    return {name: _place_of(source.tensor) for name, source in sources.items()}


def _place_of(tensor: torch.Tensor) -> _Place:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.shape, tensor.stride()


def _sample(flat: torch.Tensor) -> torch.Tensor:
    return flat[:: max(len(flat) // _SAMPLES, 1)].detach()


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)  # a NaN is like itself
