"""The protocols of an agreement and of the training that takes part in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from ..ranks import Json, RankLostError
from ..schedule import AgreedReason
from .notice import Notice

Act: TypeAlias = Literal["train", "save", "leave"]
"""The use of the time that a notice leaves: train on, save one step and train on, or leave."""


class Participant(Protocol):
    """
    The training of this rank, as the agreement needs it.

    No method is called with a lock of the agreement held.
    """

    def is_ready(self) -> bool:
        """Return whether this rank's earlier save is done, so that another may begin. On any thread."""
        ...

    def on_deferred(self, step: int) -> None:
        """Take note that *step* was due and is not saved. On the training thread of rank 0, once for each save."""
        ...

    def on_notice(self) -> None:
        """Take note that all ranks know of a notice. On a thread of the agreement of several ranks, more than once."""
        ...

    def on_lost(self, loss: RankLostError) -> None:
        """Take note that a rank is lost. On a thread of the agreement of several ranks, at most once."""
        ...

    def leave_in_pause(self) -> None:
        """
        Leave with the step at which this rank pauses, because all ranks leave there.

        On a thread of the agreement, which takes no messages meanwhile.
        """
        ...

    def figures(self) -> Json:
        """Return this rank's measurements. On a thread of the agreement."""
        ...

    def merge(self, figures: Sequence[Json]) -> None:
        """Take the :meth:`figures` of all ranks, before :meth:`decide`. On a thread of the agreement of rank 0."""
        ...

    def decide(self, step: int, notice: Notice, num_ahead: int) -> Act:
        """
        Return what all ranks do after *step*.

        They do it up to *num_ahead* boundaries later, because they must agree first. Called on rank 0 if there is a
        notice that leaves time: once on a thread of the agreement, then on the training thread at each boundary.
        """
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """Save the step that has ended. All ranks get the same decision at the same boundary."""

    trigger: AgreedReason
    leaves: bool = False
    """True if all ranks leave with this step, because of a notice."""


class Agreement(Protocol):
    """
    Chooses the boundaries at which all ranks save.

    A *boundary* is the end of an optimizer step, counted from 1 in this attempt. The training thread calls
    :meth:`at_boundary` at each boundary. Other threads may call :meth:`notify`, :meth:`cut_short` and :meth:`save_soon`
    at any time.
    """

    def open(self) -> None:
        """Start taking part. Called once, before the first boundary."""
        ...

    def at_boundary(self, step: int) -> Decision | None:
        """Return what to do at the end of *step*: in a quiet step None, at once."""
        ...

    def notify(self, notice: Notice) -> None:
        """Pass *notice* to all ranks. From any thread, any number of times. The earliest deadline counts."""
        ...

    def cut_short(self) -> bool:
        """Make all ranks leave at once if a notice leaves them time. From any thread. Return whether that is new."""
        ...

    def save_soon(self) -> None:
        """Ask all ranks to save at one of their next boundaries and to continue. From any thread."""
        ...

    def enter_pause(self) -> None:
        """
        Say that the training thread stands still after its last boundary, for example in validation.

        The thread may be caught in a collective in the pause, and wait for a rank that has left. So an agreement of
        several ranks also calls :meth:`Participant.leave_in_pause` if all leave with the step of this boundary.
        """
        ...

    def in_pause(self) -> Decision | None:
        """Return, in a pause, whether to leave with the step of the last boundary."""
        ...

    def exit_pause(self) -> Decision | None:
        """Say that the training thread continues. May return the decision to leave, as :meth:`in_pause`."""
        ...

    @property
    def notice(self) -> Notice | None:
        """The notice that all ranks know of, or None. A notice with an earlier deadline replaces it."""
        ...

    @property
    def lost(self) -> RankLostError | None:
        """The rank because of which the ranks can no longer agree, if that is the reason."""
        ...

    def saved(self, step: int) -> None:
        """Say that *step* is being saved, for any reason. The next periodic save is counted from *step*."""
        ...

    def stay(self) -> bool:
        """
        Continue without the ranks that leave, once all have saved because of a notice.

        Nothing is agreed on afterwards. A notice about this rank's own machine makes it leave at its next boundary.

        Returns:
            Whether this rank stays. It does not if the notice is about its own machine.
        """
        ...

    def close(self) -> None:
        """Stop taking part. May be called without :meth:`open`."""
        ...
