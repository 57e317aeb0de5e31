"""The calls of a session by which a program keeps steps."""

from __future__ import annotations

from ..leave.phase import PhaseTracker
from .keeper import PROGRAM, Keeper
from .opened import Opened


class KeepsSteps:
    """Base of :class:`~spot_plugins.session.SpotSession`. It has the calls that keep and release steps."""

    _phase: PhaseTracker
    _it: Opened | None

    @property
    def kept(self) -> tuple[int, ...]:
        """The steps that the program keeps, those of earlier attempts included, in order."""
        return () if self._it is None else self._it.keeper.steps_of(PROGRAM)

    def keep(self, step: int, *, owner: str = PROGRAM) -> None:
        """
        Keep *step* in the store until :meth:`release`, whatever ``keep_last`` says. Call it on every rank.

        If *step* is the present step and is not saved, it is saved now. Call it after the step, in a pause after the
        step, or after that pause. In the last two cases the state from the beginning of the pause is saved. An earlier
        step has to be in the store already. Kept steps do not count in ``keep_last``, and later attempts keep them too.

        Training does not end because of this call. If the step cannot be kept, the event
        :class:`~spot_plugins.events.KeepFailed` and a warning say so.

        Args:
            step: The present step or an earlier one.
            owner: A word in small letters. A step stays until every owner has released it.

        Raises:
            ValueError: *step* is not trained yet.
            UnsafeStateError: Some state has no pickle-free form.
        """
        self._phase.check("keep")
        self._opened.keeper.keep(step, owner)

    def release(self, step: int, *, owner: str = PROGRAM) -> None:
        """Let *step* be pruned like any other. Call it on every rank. It does nothing if *step* is not kept."""
        self._phase.check("release")
        self._opened.keeper.release(step, owner)

    @property
    def keeper(self) -> Keeper:
        """The kept steps of every owner, for hosts."""
        return self._opened.keeper

    @property
    def _opened(self) -> Opened:
        if self._it is None:
            raise RuntimeError("the session is not open: call open(), or use it in a `with` block")
        return self._it
