"""Progress of one step on its way from device memory to the object store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class StepState(str, Enum):
    """State of one step on one rank. Each value says what is true in it."""

    STAGING = "staging"  # copying device memory to host; training must not update
    PUSHING = "pushing"  # the pusher holds the staged copy; training runs
    COMMITTED = "committed"  # this rank's manifest is stored
    ABANDONED = "abandoned"  # will never be committed; retention removes it


_MOVES: Final[dict[StepState, frozenset[StepState]]] = {
    StepState.STAGING: frozenset({StepState.PUSHING, StepState.ABANDONED}),
    StepState.PUSHING: frozenset({StepState.COMMITTED, StepState.ABANDONED}),
    StepState.COMMITTED: frozenset(),
    StepState.ABANDONED: frozenset(),
}


@dataclass(slots=True)
class StepLifecycle:
    """The state of one step on one rank. Not thread-safe: its owner holds a lock."""

    step: int
    state: StepState = StepState.STAGING

    @property
    def has_ended(self) -> bool:
        """True if the state can no longer change."""
        return not _MOVES[self.state]

    def move(self, new: StepState) -> None:
        """Enter *new*. An impossible move is a bug here, so it is an assertion."""
        assert new in _MOVES[self.state], f"step {self.step}: {self.state} -> {new}"
        self.state = new
