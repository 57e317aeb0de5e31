"""The state of a part as Python values, whose tensors are read one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

from ..errors import ConfigError, CorruptCheckpointError
from ..format.manifest import Json
from ..resume.tensors import tensor_of
from ..resume.weights import Weight, Weights, entry_of, parts_with
from ..state.document import decode, graft, named
from ..state.dtypes import TORCH_DTYPES

_OF_LIBRARIES: Final = frozenset({"$composed", "$dict_kind"})
"""Tags of values whose classes other libraries have, such as quantized tensors."""
_OF_DATA: Final = frozenset({"$complex128", "$numpy"})
"""Tags of values that are made from tensors, and need their data."""


class StoredState:
    """
    The state of a committed step, as rank 0 has it, with the tensors that all ranks share.

    Args:
        weights: The weights of the step, which know all of its tensors.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._by_id: dict[int, tuple[torch.Tensor, Weight]] = {}  # with the tensors, so that no other one gets an id
        self._empty: dict[str, torch.Tensor] = {}
        self._data: dict[str, torch.Tensor] = {}
        self._shared = {each.name for manifest in weights.manifests for each in manifest.tensors if each.shared}

    def optimizers(self) -> list[str]:
        """Return the names of the parts that are optimizers, in the order in which they were registered."""
        return parts_with(self._weights.manifests, ("state", "param_groups"))

    def part(self, name: str) -> Any:
        """
        Return the state of a part. Each tensor in it is on the meta device, and :meth:`read` reads it.

        Raises:
            ConfigError: The state has values that only a program with the same libraries can hold, or that are made
                from the data of tensors.
            CorruptCheckpointError: The state makes no sense.
        """
        document = self._document(name, _OF_LIBRARIES | _OF_DATA)
        with self.errors():
            return decode(document, {each: self._tensor(each) for each in named(document)})

    def any_part(self, name: str) -> Any:
        """Return the state of a part as :meth:`part` does, or with all of its data if values are made from the data."""
        document = self._document(name, _OF_LIBRARIES)
        return self.part(name) if _OF_DATA.isdisjoint(_keys(document)) else self.whole_part(name)

    def whole_part(self, name: str) -> Any:
        """
        Return the state of a part with all of its data, or None if there is no such part.

        Raises:
            ConfigError: The state has values that only a program with the same libraries can hold.
            CorruptCheckpointError: The state makes no sense, or bytes are damaged or missing.
            StoreError: The store does not answer.
        """
        document = self._document(name, _OF_LIBRARIES)
        missing = [self._weights.weight(each, each) for each in {*named(document)} - self._data.keys()]
        self._data |= {weight.name: tensor_of(weight, image) for weight, image in self._weights.read(missing)}
        with self.errors():
            return decode(document, self._data)

    def part_of_rank(self, name: str, rank: int) -> Any:
        """
        Return the state of a part that each rank has for itself, as *rank* has it, with all of its data.

        Raises:
            CorruptCheckpointError: The state makes no sense, or bytes are damaged or missing.
            StoreError: The store does not answer.
        """
        manifest = self._weights.manifests[rank]
        document = entry_of(manifest.state, name)
        own = {each.name: each for each in manifest.tensors if not each.shared}
        with self.errors():
            pieces = [own[each] for each in dict.fromkeys(named(document))]
        missing = [
            Weight(name=each.name, dtype=each.dtype, shape=each.shape, pieces=((manifest, each),)) for each in pieces
        ]
        data = {weight.name: tensor_of(weight, image) for weight, image in self._weights.read(missing)}
        with self.errors():
            return decode(document, data)

    def tensor(self, weight: Weight) -> torch.Tensor:
        """Return the tensor of *weight* on the meta device, for :meth:`read`."""
        tensor = torch.empty(weight.shape, dtype=TORCH_DTYPES[weight.dtype], device="meta")
        self._by_id[id(tensor)] = tensor, weight
        return tensor

    def read(self, tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """
        Yield each of *tensors*, and the same with its data. A few are read ahead, in parallel.

        Raises:
            CorruptCheckpointError: Bytes are damaged or missing.
            StoreError: The store does not answer.
        """
        left = iter(tensors)
        for weight, image in self._weights.read([self._by_id[id(each)][1] for each in tensors]):
            yield next(left), tensor_of(weight, image)
            del image  # before the next one is read

    def weights_of(self, state: Any) -> list[Weight]:
        """Return the tensors in *state*, which is a result of :meth:`part` or has several of them."""
        if isinstance(state, torch.Tensor):
            return [self._by_id[id(state)][1]]
        inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
        return [weight for each in inner for weight in self.weights_of(each)]

    def _document(self, name: str, refused: frozenset[str]) -> Json:
        """Return what is stored of a part, with the shared tensors that only other ranks name."""
        document, *others = [entry_of(manifest.state, name) for manifest in self._weights.manifests]
        if missing := self._shared.difference(named(document)):
            for other in others:
                document = graft(document, other, missing)
        if found := sorted(refused.intersection(_keys(document))):
            raise ConfigError(f"{name} has values that the output cannot hold: {', '.join(found)}")
        return document

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise :exc:`CorruptCheckpointError` if the ``with`` block finds that the state of a part is another one."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            step_id = self._weights.step_id
            reason = f"holds unreadable state: {error!r}"
            raise CorruptCheckpointError(step_id.step, step_id.prefix, reason) from error

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._empty:
            self._empty[name] = self.tensor(self._weights.weight(name, name))
        return self._empty[name]


def _keys(document: Json) -> Iterator[str]:
    """Yield the keys of all objects in *document*. No recursion, because a forged state may be deep."""
    left = [document]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            yield from each
        left += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
