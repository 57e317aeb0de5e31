"""Another try, for a store that may answer in a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from ..errors import StoreError

TRIES: Final = 5
FIRST_PAUSE_S: Final = 0.5  # doubled each time: 7.5 s in all

_T = TypeVar("_T")


def patiently(action: Callable[[], _T]) -> _T:
    """
    Do *action*, again after a pause if the store fails: a restarted machine's network may be young.

    For the start of a job, when there is nothing better to do than to wait.

    Raises:
        StoreError: It failed each time, or for good.
    """
    for number in range(TRIES - 1):
        try:
            return action()
        except StoreError as error:
            if not error.retryable:
                raise
            time.sleep(FIRST_PAUSE_S * 2**number)
    return action()
