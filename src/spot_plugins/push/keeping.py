"""Marks of kept steps: the wishes of the trainer on their way into the store. Runs in the pusher process of rank 0."""

from __future__ import annotations

import threading
from typing import Final

from .. import events
from ..errors import StoreError, SupersededError
from ..events import Event, EventBus
from ..format import kept
from ..store import ObjectStore
from .messages import KeepRequest

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 15.0


class Marks:
    """
    The wishes that are not fulfilled yet.

    The thread that pushes and prunes fulfills them, so no mark is put while this process prunes. A step whose mark the
    store has not taken yet is in :attr:`protected`, and is not pruned either.

    Args:
        store: The store of the run.
        attempt: Number of the attempt.
        bus: Gets the answers.
    """

    def __init__(self, store: ObjectStore, attempt: int, bus: EventBus) -> None:
        self._store = store
        self._attempt = attempt
        self._bus = bus
        self._lock = threading.Lock()
        self._waiting: list[KeepRequest] = []
        self.pause_s = FIRST_PAUSE_S
        """Seconds until the next try of a wish that has failed."""

    def add(self, request: KeepRequest) -> None:
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
            return frozenset(request.step for request in self._waiting if request.keeps)

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
            self._bus.emit(answer)

    def _answer(self, request: KeepRequest) -> Event:
        step, owner = request.step, request.owner
        try:
            if not request.keeps:
                kept.release(self._store, self._attempt, step, owner)
                return events.Released(step=step, owner=owner)
            step_id = kept.keep(self._store, self._attempt, step, owner, is_saving=request.is_saving)
        except SupersededError as error:
            return _failed(request, str(error))
        if step_id is None:
            return _failed(request, "the store does not have it: it was never committed, or was pruned before")
        return events.Kept(step=step, attempt=step_id.attempt, owner=owner)


def _failed(request: KeepRequest, reason: str) -> Event:
    if not request.keeps:  # the step stays, which costs money and no work
        return events.Released(step=request.step, owner=request.owner)
    return events.KeepFailed(step=request.step, owner=request.owner, reason=reason)
