"""Watchers: subscribers that know the session too, such as metrics, and the event log, which gets the same calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..config import SpotConfig
from ..events import Event
from ..store import ObjectStore
from .recorder import Recorder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """The facts about an open session."""

    config: SpotConfig
    store: ObjectStore
    """The store of the run."""
    attempt: int
    """Number of the attempt, counted from 1."""
    rank: int
    world_size: int
    process_s: float | None
    """Seconds since the process began. None if that is unknown, or if the process had a session before."""
    reached: Callable[[], int | None]
    """Returns the last step that is done. Callable from any thread."""


class Watcher:
    """
    Base of a subscriber that knows the session too. Pass it in ``on_event``.

    Each method returns at once, because training waits for it. An exception in one is logged and disturbs nothing.
    """

    def __call__(self, event: Event) -> None:
        """Take note of *event*. On the thread that emits the event, also before :meth:`open`."""

    def open(self, watched: Watched) -> None:
        """Begin to watch a session. One object may watch several, one after the other."""

    def begin(self, step: int | None) -> None:
        """Take note that training begins after *step*, None on a first run. On the training thread."""

    def close(self, *, is_finished: bool, error: str | None) -> None:
        """
        Stop. Called once the session has done what it can, on the training thread.

        Args:
            is_finished: Whether the training is done and its end is stored.
            error: Class of the exception that ends the training, or None.
        """


class Watchers:
    """
    The recorder of the event log, and the watchers of a session.

    Args:
        recorder: The recorder.
        watchers: The watchers.
    """

    def __init__(self, recorder: Recorder, watchers: Sequence[Watcher]) -> None:
        self._recorder = recorder
        self._watchers = watchers

    def open(self, watched: Watched) -> None:
        """Begin."""
        self._recorder.open()
        self._call(lambda each: each.open(watched))

    def begin(self, step: int | None) -> None:
        """Say that training begins after *step*."""
        self._recorder.begin(step)
        self._call(lambda each: each.begin(step))

    def fail(self, error: BaseException) -> None:
        """Remember the class of the *error* that ends the training."""
        self._recorder.fail(error)

    def close(self) -> None:
        """Say how the training has ended."""
        self._recorder.close()
        end = self._recorder.end()
        self._call(lambda each: each.close(is_finished=end.is_finished, error=end.error))

    def _call(self, call: Callable[[Watcher], None]) -> None:
        for each in self._watchers:
            try:
                call(each)
            except Exception:
                logger.exception("a watcher of the session failed; training continues")
