"""The steps of this attempt that its user asks for, kept from its events."""

from __future__ import annotations

from ..events import Committed, Event, Resumed


class Milestones:
    """The step that this attempt resumed from, and the newest one that it has committed."""

    def __init__(self) -> None:
        self.resumed: Resumed | None = None
        """The event of the resume, or None."""
        self.last_committed_step: int | None = None
        """The newest step of which this attempt has stored the part of this rank, or None."""

    @property
    def resumed_from(self) -> int | None:
        """The step that this attempt resumed from, or None."""
        return None if self.resumed is None else self.resumed.step

    def on_event(self, event: Event) -> None:
        """Keep the step of *event*, if it is one of these. Callable from any thread."""
        match event:
            case Committed(step=step):
                self.last_committed_step = max(step, self.last_committed_step or 0)
            case Resumed():
                self.resumed = event
