"""Calls side by side, each on a daemon thread, so that a call that hangs delays neither the others nor the end."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from ..machine.threads import NoThreadError, start_thread
from .base import ProviderError

_Name = TypeVar("_Name")
_Result = TypeVar("_Result")

_OVERTIME_S: Final = 1.0
"""Time in seconds that a call gets beyond its limit, so that its own error arrives and not the one of this module."""


def in_parallel(
    calls: Mapping[_Name, tuple[float, Callable[[float], _Result]]],
) -> dict[_Name, _Result | ProviderError]:
    """
    Call all of *calls* at once and return the result or the :exc:`ProviderError` of each.

    Args:
        calls: By name, the limit of a call in seconds and the function, which is passed the monotonic time of its end.
    """
    done: queue.SimpleQueue[tuple[_Name, _Result | ProviderError]] = queue.SimpleQueue()
    ends = {name: time.monotonic() + limit_s for name, (limit_s, _) in calls.items()}

    def run(name: _Name) -> None:
        try:
            done.put((name, calls[name][1](ends[name])))
        except ProviderError as error:
            done.put((name, error))
        except Exception as error:  # noqa: BLE001 - one provider must not take the rows of the others with it
            done.put((name, ProviderError(f"the answer has a form that nobody expected: {type(error).__name__}")))

    for name in calls:
        try:
            start_thread(threading.Thread(target=run, args=(name,), daemon=True, name=f"spot-prices-{name}"))
        except NoThreadError as error:
            done.put((name, ProviderError(str(error))))
    results: dict[_Name, _Result | ProviderError] = {}
    while waiting := calls.keys() - results.keys():
        left_s = max(ends[name] for name in waiting) + _OVERTIME_S - time.monotonic()
        try:
            # wait: the longest limit of the calls, and _OVERTIME_S; the calls that remain have failed
            name, result = done.get(timeout=max(left_s, 0.0))
        except queue.Empty:
            break
        results[name] = result
    for name in calls.keys() - results.keys():
        results[name] = ProviderError(f"no answer within {calls[name][0]:.0f} s")
    return results
