"""Parts that are restored once more right before the first batch, because hooks may have changed them since."""

from __future__ import annotations

from collections.abc import Callable, Set
from copy import deepcopy
from typing import Any

import torch

from ..errors import UnsafeStateError
from ..state import ModelPart, OptimizerPart, Part, Shard, ShardedPart, encode
from ..state.live_tensor import Changes, KnownMemory
from ..state.part import TensorPath
from ..state.scaler import as_sharded
from .values import same_tensor


class KeptPart(ShardedPart):
    """
    Part that keeps its restored state in host memory until :meth:`restore_again`.

    Between the resume and the first batch, a new process calls hooks that an uninterrupted training has called long
    before. Whatever they change in saved state must not stay.
    """

    def __init__(self, part: Part) -> None:
        self._part = as_sharded(part)
        self.replicated = self._part.replicated
        self.is_optional = self._part.is_optional
        self._state: Any = None

    def state_dict(self) -> Any:
        """Return the state of the part."""
        return self._part.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Restore the part, and keep *state*."""
        # These two copy what they are given. Any other part may keep and change it.
        is_copied = isinstance(self._part, (ModelPart, OptimizerPart))
        self._part.load_state_dict(state if is_copied else deepcopy(state))
        self._state = state

    def restore_again(self) -> None:
        """Restore the part once more if it differs from its kept state, and let go of that."""
        state, self._state = self._state, None
        if state is not None and not is_same_state(self._part.state_dict(), state):
            self._part.load_state_dict(state)

    @property
    def subject(self) -> Any:
        """The object of the part."""
        return self._part.subject

    def trained_memory(self) -> Set[int]:
        """Ask the part."""
        return self._part.trained_memory()

    def frozen_memory(self) -> Set[int]:
        """Ask the part."""
        return self._part.frozen_memory()

    def changes(self, path: TensorPath, tensor: torch.Tensor, known: KnownMemory) -> Changes:
        """Ask the part."""
        return self._part.changes(path, tensor, known)

    def template_finder(self) -> Callable[[TensorPath], Shard | None]:
        """Ask the part."""
        return self._part.template_finder()

    def copies(self, path: TensorPath) -> bool:
        """Ask the part."""
        return self._part.copies(path)

    def for_new_rank(self, state: Any, rank: int) -> Any:
        """Ask the part."""
        return self._part.for_new_rank(state, rank)


def is_same_state(one: Any, other: Any) -> bool:
    """Return True if both states are the same. A state with shards counts as different."""
    try:
        document, tensors = encode(one)
        other_document, others = encode(other)
    except UnsafeStateError:
        return False
    return (
        document == other_document
        and tensors.keys() == others.keys()
        and all(same_tensor(tensor, others[name]) for name, tensor in tensors.items())
    )
