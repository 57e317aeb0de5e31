"""Patience at the start of a job, with a store that may answer a moment later."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Final, TypeVar

from ..errors import StoreError
from ..machine.threads import start_thread

TRIES: Final = 5
FIRST_PAUSE_S: Final = 0.5  # doubled after each try, 7.5 s in total
LONGEST_PAUSE_S: Final = 8.0

PATIENCE_S: Final = 100.0
"""Seconds after its first failure for which a call is tried again, if the trouble passes by itself."""

SETTLING_S: Final = 30.0
"""The same for a refusal that is final as a rule, but not on a machine or with a key that is new."""

_LINE_GAP_S: Final = 0.4
"""Shortest time in seconds from one line to the next, because several threads may wait for the same store."""

_POLL_S: Final = 0.05
"""Seconds between two looks for a notice."""

_T = TypeVar("_T")


def attentively(
    action: Callable[[], _T], wait: Callable[[float], None], is_over: Callable[[], bool]
) -> futures.Future[_T] | None:
    """
    Call *action* on a thread of its own. The thread is left behind if the wait for it ends before it does.

    Args:
        action: It may hang in the kernel or in a client, where no thread can be ended.
        wait: Waits for a number of seconds. It raises if there is a notice.
        is_over: Returns whether the action is given up.

    Returns:
        The future of the action, which has ended. None if the action was given up.

    Raises:
        NoThreadError: The machine has no room for the thread.
    """
    done: futures.Future[_T] = futures.Future()

    def run() -> None:
        try:
            done.set_result(action())
        except BaseException as error:  # noqa: BLE001 - the thread of the caller raises it
            done.set_exception(error)

    start_thread(threading.Thread(target=run, name="spot-attentive", daemon=True))
    # wait: _POLL_S; it looks again for a notice, until the caller gives the action up
    while not futures.wait([done], _POLL_S).done:
        # wait: at once; it raises if there is a notice
        wait(0.0)
        if is_over():
            return None
    return done


def patiently(action: Callable[[], _T]) -> _T:
    """
    Call *action* and return its result. If the store fails, pause and try again, 5 tries in total.

    Raises:
        StoreError: The last try failed, or an error cannot be retried.
    """
    for number in range(TRIES - 1):
        try:
            return action()
        except StoreError as error:
            if not error.retryable:
                raise
            # wait: FIRST_PAUSE_S, twice as long after each of TRIES tries; the error of the last one is raised
            time.sleep(FIRST_PAUSE_S * 2**number)
    return action()


class Patience:
    """
    The patience of a session with its store, until training begins. Every method is safe on any thread.

    A new machine may run before its network, its clock or its credentials work. Many schedulers do not start a failed
    job again, so the session waits for that, with a line for each failed try.

    Args:
        say: Shows a line.
        wait: Waits for a number of seconds. It may raise, to end the wait.
    """

    def __init__(self, say: Callable[[str], None], wait: Callable[[float], None]) -> None:
        self.wait = wait
        self._say = say
        self._lock = threading.Lock()
        self._said_at = -math.inf
        self._is_spent = False

    def __call__(self, action: Callable[[], _T]) -> _T:
        """
        Call *action* until it succeeds, and return its result.

        Once a call has failed for :data:`PATIENCE_S`, other calls fail at once, until one succeeds.

        Raises:
            StoreError: The failure is final, or has lasted too long.
        """
        since: float | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                result = action()
            except StoreError as error:
                now = time.monotonic()
                since = now if since is None else since
                limit_s = PATIENCE_S if error.retryable else SETTLING_S if error.may_settle else 0.0
                left_s = since + limit_s - now
                if left_s <= 0 or self._is_spent:
                    self._is_spent |= error.retryable
                    raise
                self._tell(f"waiting for the store, at most {left_s:.0f} s more: {error.reason}")
            else:
                self._is_spent = False
                return result
            # wait: LONGEST_PAUSE_S; the call is tried again
            self.wait(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _tell(self, text: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._said_at < _LINE_GAP_S:
                return
            self._said_at = now
        self._say(text)
