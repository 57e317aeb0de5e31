"""Frozen weights: stored once for many steps, as long as nothing shows that they change after all."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Final, TypeAlias

import torch

from ..push import FrozenUse
from ..state.dtypes import TORCH_DTYPES
from ..state.live_tensor import LiveTensor
from .devices import DEVICES
from .layout import Layout
from .shared_buffer import SharedBuffer
from .snapshot import pieces_in

_SAMPLES: Final = 16

_Place: TypeAlias = "tuple[int, int, torch.Size, tuple[int, ...]]"


class FrozenState(Enum):
    """State of a set of frozen tensors. Each value says what is true in it."""

    NEW = auto()  # steps bring the blobs; none of them is known to be stored
    STORED = auto()  # the blobs are stored, and steps refer to them
    CHANGED = auto()  # the tensors were seen to change, so steps store them as their own


_MOVES: Final[dict[FrozenState, frozenset[FrozenState]]] = {
    FrozenState.NEW: frozenset({FrozenState.STORED, FrozenState.CHANGED}),
    FrozenState.STORED: frozenset({FrozenState.CHANGED}),
    FrozenState.CHANGED: frozenset(),
}


class FrozenSet:
    """
    Frozen tensors as one step has stored them, with a fingerprint that shows later changes.

    A momentum encoder has no gradients either, but changes in every step. The version of a tensor shows in-place
    operations, its address shows new memory. A change that avoids both (in place, through ``.data``) shows in a sample
    of the values, :data:`_SAMPLES` of every slice of at most 8 MiB.

    Args:
        number: Name of the set between trainer and pusher, from 1.
        layout: Layout of its blobs.
        live: The tensors, before they are copied. :meth:`take_sample` follows.
    """

    def __init__(self, number: int, layout: Layout, live: Mapping[str, LiveTensor]) -> None:
        self.number = number
        self.layout = layout
        self.state = FrozenState.NEW
        self._moving = threading.Lock()
        self._places = _places_of(live)
        self._samples: list[torch.Tensor] = []

    def move(self, new: FrozenState) -> None:
        """Enter *new*, if the set is not there already. An impossible move is a bug here, so it is an assertion."""
        with self._moving:  # the training thread and the copying thread both find changes
            assert new is self.state or new in _MOVES[self.state], f"set {self.number}: {self.state} -> {new}"
            self.state = new

    def take_sample(self, buffer: SharedBuffer) -> None:
        """Sample the values of the copy in *buffer*, which is complete."""
        for piece in self.layout.slices:
            first = self.layout.blobs[piece.blob][0]
            image = buffer.bytes[first + piece.start : first + piece.stop].view(TORCH_DTYPES[piece.dtype])
            self._samples.append(_sample(image).clone())

    def check(self, live: Mapping[str, LiveTensor], *, values_by: SharedBuffer | None = None) -> bool:
        """
        Compare *live* with the fingerprint. If they differ, the set is CHANGED for good.

        Args:
            live: The tensors as they are now, by name.
            values_by: Compare the sample of the values. Each device is waited for once, in the stream of this buffer.
                Without a buffer compare versions, addresses and shapes, which takes microseconds for each tensor.

        Returns:
            Whether they are the same.
        """
        is_same = self._places == _places_of(live) if values_by is None else self._has_values_of(live, values_by)
        if not is_same:
            self.move(FrozenState.CHANGED)
        return is_same

    def _has_values_of(self, live: Mapping[str, LiveTensor], buffer: SharedBuffer) -> bool:
        on_device: defaultdict[torch.device, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for then, (_, tensor, _) in zip(self._samples, pieces_in(self.layout, live), strict=True):
            on_device[tensor.device].append((then, tensor))
        for device, pairs in on_device.items():
            gather = partial(_gather, [tensor for _, tensor in pairs])
            kind = DEVICES.get(device.type)
            now = gather().cpu() if kind is None else kind.fetch(buffer.stream(device), gather)
            if not torch.equal(now, torch.cat([then for then, _ in pairs])):
                return False
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedFrozen:
    """The frozen tensors of one staged step, and the way in which the step stores them."""

    live: Mapping[str, LiveTensor]
    """The tensors. Empty if nothing is frozen."""
    use: FrozenUse
    set: FrozenSet | None = None
    """The set that is brought or referred to. None exactly if *use* is NONE."""

    @property
    def number(self) -> int:
        """Number of the set. 0 if the step has none."""
        return 0 if self.set is None else self.set.number


class FrozenSets:
    """The sets of one attempt, one after another. Only the newest one is of use."""

    def __init__(self) -> None:
        self._newest: FrozenSet | None = None

    def stage(self, live: Mapping[str, LiveTensor], layout: Layout, is_stored: Callable[[int], bool]) -> StagedFrozen:
        """
        Decide how a step stores the frozen tensors *live*.

        Args:
            live: The tensors, at least one.
            layout: Their layout.
            is_stored: Returns whether the set of a number is stored. If the store has lost it since, the step brings
                the tensors again.
        """
        newest = self._newest
        if newest is not None and newest.state is not FrozenState.CHANGED and newest.layout is layout:
            newest.check(live)
        if newest is not None and newest.state is FrozenState.CHANGED:  # other frozen tensors are not trusted either
            return StagedFrozen(live=live, use=FrozenUse.NONE)
        if newest is not None and newest.layout is layout and is_stored(newest.number):
            newest.move(FrozenState.STORED)
            return StagedFrozen(live=live, use=FrozenUse.REFERS, set=newest)
        number = 1 if newest is None else newest.number + 1
        self._newest = FrozenSet(number, layout, live)
        return StagedFrozen(live=live, use=FrozenUse.BRINGS, set=self._newest)


def _places_of(live: Mapping[str, LiveTensor]) -> dict[str, _Place]:
    return {name: _place_of(each.tensor) for name, each in live.items()}


def _place_of(tensor: torch.Tensor) -> _Place:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.shape, tensor.stride()


def _gather(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([_sample(tensor.reshape(-1)) for tensor in tensors])


def _sample(flat: torch.Tensor) -> torch.Tensor:
    """Return some of the values, as bytes, because a NaN does not equal itself."""
    return flat[:: max(len(flat) // _SAMPLES, 1)].detach().contiguous().view(torch.uint8)
