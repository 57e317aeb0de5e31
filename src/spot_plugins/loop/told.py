"""The warnings of one loop."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from ..guard import warn


class Told:
    """The warnings of one loop, each of which is given once, or once for each thing that it is about."""

    def __init__(self) -> None:
        self.things: WeakSet[Any] = WeakSet()
        """The things that a warning was about. No other guard warns of them."""
        self._given: set[str] = set()

    def never(self, text: str) -> None:
        """Do not give the warning *text*, because it does not apply to this loop."""
        self._given.add(text)

    def __call__(self, text: str, *, about: Any = None, **values: Any) -> None:
        """Warn with *text*, in which *values* stand in braces, unless it was given before."""
        if about is None and text in self._given:
            return
        if about is not None:
            if about in self.things:
                return
            self.things.add(about)
        self._given.add(text)
        warn(text.format(**values) if values else text)
