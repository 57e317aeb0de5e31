"""Retries at the start of a job, for a store that may answer a moment later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from ..errors import StoreError

TRIES: Final = 5
FIRST_PAUSE_S: Final = 0.5  # doubled after each try, 7.5 s in total

_T = TypeVar("_T")


def patiently(action: Callable[[], _T]) -> _T:
    """
    Call *action* and return its result. If the store fails, pause and try again, 5 tries in total.

    For the start of a job, because the network of a new machine may not be ready yet, and training cannot begin without
    the store.

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
