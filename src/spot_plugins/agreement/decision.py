"""What an agreement answers, and the form that both kinds share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from ..format.manifest import Json
from ..schedule import AgreedReason
from .notice import Notice

Act: TypeAlias = Literal["train", "save", "leave"]


class Planner(Protocol):
    """What a rank makes of the time that a notice leaves it."""

    def figures(self) -> Json:
        """Return what this rank has measured. From a thread of the agreement."""
        ...

    def learn(self, figures: Sequence[Json]) -> None:
        """Take in the :meth:`figures` of all ranks, before :meth:`heed`. From a thread of the agreement."""
        ...

    def heed(self, step: int, notice: Notice, num_ahead: int) -> Act:
        """
        Return what to do behind *step*: ``train`` on, ``save`` and train on, or ``leave``.

        What this says is done up to *num_ahead* boundaries later, because the ranks must agree on it. Called on rank 0
        once there is a notice that leaves time: at first on a thread of the agreement, then at each boundary.
        """
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """Save the step that was just done. All ranks get the same decision at the same boundary."""

    trigger: AgreedReason
    leaves: bool = False
    """Whether all leave with it, because of a notice."""


class Agreement(Protocol):
    def open(self) -> None: ...

    """
    Chooses the boundaries at which all ranks save.

    A *boundary* is the end of an optimizer step, counted from 1 in this process life. The training thread
    calls :meth:`at_boundary` at each; other threads may call :meth:`notify` at any time.
    """

    def at_boundary(self, step: int) -> Decision | None:
        """Return what to do at the end of *step*: in a quiet step None, at once."""
        ...

    def notify(self, notice: Notice) -> None:
        """Tell all ranks of a notice. From any thread, any number of times; the earliest deadline counts."""
        ...

    def save_soon(self) -> None:
        """Ask all ranks to save at one of their next boundaries, and to go on. From any thread."""
        ...

    def enter_pause(self) -> None:
        """
        The training thread stands still behind its last boundary, for example in validation.

        It may be caught in a collective there, waiting for a rank that has left. So when all agree to leave
        with the state of this boundary, an agreement of several ranks also says so from a thread of its own.
        """
        ...

    def in_pause(self) -> Decision | None:
        """Ask, within a pause, whether to leave with the state of the last boundary."""
        ...

    def exit_pause(self) -> Decision | None:
        """The training thread goes on. May answer as :meth:`in_pause` does."""
        ...

    @property
    def notice(self) -> Notice | None:
        """The notice that all ranks know of, or None. It may be replaced by one with an earlier deadline."""
        ...

    def saved(self, step: int) -> None:
        """*step* is being saved, for whatever reason: periodic triggers count from here."""
        ...

    def stay(self) -> bool:
        """
        Once all have saved because of a notice: go on without the ranks that leave, if this one has no notice.

        Nothing is agreed on any more then; a notice of this rank's own makes it leave at its next boundary.

        Returns:
            Whether this rank stays.
        """
        ...

    def close(self) -> None:
        """Stop taking part."""
        ...
