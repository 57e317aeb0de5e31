"""
The protocol of an object with state, and the base of parts that know more about their tensors.

The registry asks the parts for all that it has to know. Everything beyond ``state_dict()`` and ``load_state_dict()``
has a default that is safe for any object.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from .live_tensor import Changes, KnownMemory
from .shard import Shard
from .wrappers import copies_tensors

TensorPath: TypeAlias = tuple[str, ...]
"""
The keys that lead to a tensor inside the state of one part, for example ``("state", "head.weight", "exp_avg")``.

Each key is written as in the tensor's name, see :func:`~.encoder.segment`.
"""


class Part(Protocol):
    """Anything with state: a model, an optimizer, a scheduler, a counter of the user's own."""

    def state_dict(self) -> Any:
        """Return the state: tensors, arrays, numbers, strings, and dicts and lists of them."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Take over what :meth:`state_dict` returned."""
        ...


class ShardedPart(Part):
    """
    A part that knows how its tensors lie on the ranks and when their values change.

    A subclass defines ``state_dict()`` and ``load_state_dict()``, and overrides what it knows better than the
    defaults. All methods are called on the training thread.
    """

    replicated: tuple[str, ...] = ()
    """
    Top-level keys of the state. Tensors below them are equal on all ranks, unless they are spread over the ranks.

    The ranks share the work of storing these tensors. By default each rank stores all of its tensors itself.
    """

    is_optional: bool = False
    """True if a checkpoint that has nothing of this part is loaded all the same. The part is then left as it is."""

    @property
    def subject(self) -> Any:
        """The object of the program whose state this part is. By default the part itself."""
        return self

    def trained_memory(self) -> Set[int]:
        """Return the addresses, as of :func:`~.shard.memory_of`, of memory that only an optimizer's step changes."""
        return frozenset()

    def frozen_memory(self) -> Set[int]:
        """Return the addresses of memory that presumably never changes. Trained memory is not frozen."""
        return frozenset()

    def changes(self, path: TensorPath, tensor: torch.Tensor, known: KnownMemory) -> Changes:
        """
        Return when the values of *tensor*, found at *path* in the state, may change.

        By default this depends on the memory of *tensor* alone. *known* is the memory that all parts have named.
        """
        return known.changes_of(tensor)

    def template_finder(self) -> Callable[[TensorPath], Shard | None]:
        """
        Return a function that finds the shard which this rank wants back for a saved tensor, by its path.

        The registry asks it only about tensors that the state of this part does not have now, such as the momentum of
        an optimizer before its first step. None stands for the whole tensor, and is the default.
        """
        return lambda path: None

    def copies(self, path: TensorPath) -> bool:
        """
        Return True if ``load_state_dict()`` copies the tensor at *path* to its device. By default it may keep it.

        A shard that is copied is given in host memory, so that a device never holds a state twice.
        """
        return False

    def take_state_dict(self, state: Any) -> None:
        """Load *state*, to which nothing else refers. A part may keep its tensors, if it knows how."""
        self.load_state_dict(state)

    def for_new_rank(self, state: Any, rank: int) -> Any:
        """
        Return the state with which *rank* begins if the job that saved had no such rank.

        *state* is that of rank 0. By default the new rank takes it as it is.
        """
        return state


@runtime_checkable
class AdaptsToNewRanks(Protocol):
    """A user's part that begins with other state on a new rank, see :meth:`ShardedPart.for_new_rank`."""

    def for_new_rank(self, state: Any, rank: int, /) -> Any:
        """Return the state with which *rank* begins; *state* is that of rank 0."""
        ...


class PlainPart(ShardedPart):
    """An object of which only ``state_dict()`` and ``load_state_dict()`` are known."""

    def __init__(self, plain: Part) -> None:
        self._plain = plain

    @property
    def subject(self) -> Any:
        """The object itself."""
        return self._plain

    def state_dict(self) -> Any:
        """Return the state of the object."""
        return self._plain.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Give the object its state back."""
        self._plain.load_state_dict(state)

    def copies(self, path: TensorPath) -> bool:
        """Return True for the parameters and buffers of a module, such as an average of the weights."""
        return copies_tensors(self._plain) and len(path) == 1

    def for_new_rank(self, state: Any, rank: int) -> Any:
        """Ask the object if it has this method."""
        return self._plain.for_new_rank(state, rank) if isinstance(self._plain, AdaptsToNewRanks) else state
