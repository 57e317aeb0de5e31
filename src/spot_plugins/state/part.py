"""The protocol of an object with state."""

from __future__ import annotations

from typing import Any, Protocol


class Part(Protocol):
    """Anything with state: a model, an optimizer, a scheduler, a counter of the user's own."""

    def state_dict(self) -> Any:
        """Return the state: tensors, arrays, numbers, strings, and dicts and lists of them."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Take over what :meth:`state_dict` returned."""
        ...
