"""The trainer's wishes to keep, to release and to prune steps, until the pusher process has answered them. Pure."""

from __future__ import annotations

import threading

from .. import events
from ..events import Event
from .ledger import MAX_TRIES
from .messages import KeepRequest, PruneRequest


class Wishes:
    """Wishes without an answer, in their order, each with the number of processes that it was sent to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, KeepRequest | PruneRequest] = {}
        self._num_tries: dict[int, int] = {}
        self._num_added = 0
        self.is_pruned = False
        """True if a wish to prune was fulfilled."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, request: KeepRequest | PruneRequest) -> int:
        """Add a wish that is sent next. Return its number."""
        with self._lock:
            self._num_added += 1
            self._waiting[self._num_added] = request
            self._num_tries[self._num_added] = 1
            return self._num_added

    def again(self) -> list[KeepRequest | PruneRequest]:
        """Return all wishes, which are sent to another process next."""
        with self._lock:
            for number in self._waiting:
                self._num_tries[number] += 1
            return list(self._waiting.values())

    def lose(self, reason: str) -> list[Event]:
        """Drop the wishes that have ended enough processes, and return the answers to them."""
        with self._lock:
            lost = [number for number in self._waiting if self._num_tries[number] >= MAX_TRIES]
            dropped = [self._waiting.pop(number) for number in lost]
        keeps = [each for each in dropped if isinstance(each, KeepRequest) and each.keeps]
        return [events.KeepFailed(step=each.step, owner=each.owner, reason=reason) for each in keeps]

    def on_pruned(self) -> None:
        """Record that the wish to prune is fulfilled."""
        with self._lock:
            self.is_pruned = True
            self._waiting = {n: each for n, each in self._waiting.items() if not isinstance(each, PruneRequest)}

    def on_event(self, event: Event) -> None:
        """Record the answer to a wish."""
        if not isinstance(event, events.Kept | events.KeepFailed | events.Released):
            return
        is_release = isinstance(event, events.Released)
        with self._lock:
            for number, each in self._waiting.items():
                if not isinstance(each, KeepRequest):
                    continue
                if (each.step, each.owner, each.keeps) == (event.step, event.owner, not is_release):
                    del self._waiting[number]
                    return
