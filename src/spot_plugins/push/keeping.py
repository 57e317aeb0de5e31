"""Kept steps and old ones: the wishes of the trainer on their way into the store. Runs in the pusher of rank 0."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from .. import events
from ..errors import StoreError, SupersededError
from ..events import Event, EventBus
from ..format import kept
from ..format.retention import prune
from ..store import ObjectStore
from .messages import KeepRequest, PruneRequest, PushSettings

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 15.0


class Marks:
    """
    The wishes that are not fulfilled yet.

    The thread that pushes and prunes fulfills them, so no mark is put while this process prunes. A step whose mark the
    store has not taken yet is in :attr:`protected`, and is not pruned either.

    Args:
        store: The store of the run.
        settings: The settings of this rank.
        bus: Gets the answers.
        on_pruned: Called when old steps are removed, because the trainer has asked for that.
    """

    def __init__(
        self, store: ObjectStore, settings: PushSettings, bus: EventBus, on_pruned: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._settings = settings
        self._bus = bus
        self._on_pruned = on_pruned
        self._lock = threading.Lock()
        self._waiting: list[KeepRequest | PruneRequest] = []
        self.pause_s = FIRST_PAUSE_S
        """Seconds until the next try of a wish that has failed."""

    def add(self, request: KeepRequest | PruneRequest) -> None:
        """Add a wish. Callable from any thread."""
        with self._lock:
            self._waiting.append(request)

    @property
    def is_done(self) -> bool:
        """True if no wish waits."""
        return not self._waiting

    @property
    def protected(self) -> frozenset[int]:
        """Steps whose marks are still to be put."""
        with self._lock:
            return frozenset(each.step for each in self._waiting if isinstance(each, KeepRequest) and each.keeps)

    def fulfill(self) -> None:
        """Try each wish once, in order. What the store does not take stays for the next call. Never raises."""
        while self._waiting:
            request = self._waiting[0]
            try:
                answer = self._answer(request)
            except StoreError:
                self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
                return
            except Exception as error:  # noqa: BLE001 - a bug must not end the pusher: the next step may be saved
                answer = _failed(request, f"unexpected {error!r}")
            self.pause_s = FIRST_PAUSE_S
            with self._lock:
                del self._waiting[0]
            if answer is not None:
                self._bus.emit(answer)

    def _answer(self, request: KeepRequest | PruneRequest) -> Event | None:
        if isinstance(request, PruneRequest):
            prune_old(self._store, self, self._settings, self._bus)
            self._on_pruned()
            return None
        step, owner, attempt = request.step, request.owner, self._settings.attempt
        try:
            if not request.keeps:
                kept.release(self._store, attempt, step, owner)
                return events.Released(step=step, owner=owner)
            step_id = kept.keep(self._store, attempt, step, owner, is_saving=request.is_saving)
        except SupersededError as error:
            return _failed(request, str(error))
        if step_id is None:
            return _failed(request, "the store does not have it: it was never committed, or was pruned before")
        return events.Kept(step=step, attempt=step_id.attempt, owner=owner)


def prune_old(store: ObjectStore, marks: Marks | None, settings: PushSettings, bus: EventBus) -> None:
    """
    Remove the steps that *settings* do not keep. If a newer attempt runs, an event says so and nothing is removed.

    Raises:
        StoreError: The store failed before the end. The next call removes the rest.
    """
    try:
        removed = prune(
            store,
            settings.attempt,
            keep_last=settings.keep_last,
            keep_every=settings.keep_every,
            protected=frozenset() if marks is None else marks.protected,
        )
    except SupersededError as error:
        bus.emit(events.Superseded(attempt=error.attempt, newest=error.newest))
        return
    for step_id in removed:
        bus.emit(events.Pruned(step=step_id.step, attempt=step_id.attempt))


def _failed(request: KeepRequest | PruneRequest, reason: str) -> Event | None:
    if isinstance(request, PruneRequest):  # the trainer says that it has no answer
        return None
    if not request.keeps:  # the step stays, which costs money and no work
        return events.Released(step=request.step, owner=request.owner)
    return events.KeepFailed(step=request.step, owner=request.owner, reason=reason)
