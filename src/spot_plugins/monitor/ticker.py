"""A thread that calls a function now and then, and at once when it is woken."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ticker:
    """
    Calls *work* on a thread of its own: at once, every *every_s* seconds, and after each :meth:`wake`.

    Args:
        name: Name of the thread.
        every_s: Seconds between two calls.
        work: Called with whether the thread was woken. It must not raise.
    """

    def __init__(self, name: str, every_s: float, work: Callable[[bool], None]) -> None:
        self._every_s = every_s
        self._work = work
        self._changed = threading.Condition()
        self._is_woken = True
        self._last: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Let the function be called soon. Returns at once. Callable from any thread."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def close(self, last: Callable[[], None], wait_s: float) -> None:
        """End with a call of *last* on the thread. Wait for it *wait_s* seconds at most."""
        with self._changed:
            self._last = last
            self._changed.notify_all()
        if self._thread.ident is not None:  # else the machine had no room for it
            # wait: wait_s of the caller; the thread is left behind
            self._thread.join(wait_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                # wait: every_s of the creator; the work is done
                self._changed.wait_for(lambda: self._is_woken or self._last is not None, self._every_s)
                is_woken, self._is_woken, last = self._is_woken, False, self._last
            if last is not None:
                last()
                return
            self._work(is_woken)
