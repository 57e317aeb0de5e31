"""The subscribers that a user gives to a session or to the entry point of a host."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import ConfigError
from ..events import Subscriber


def subscribers_of(
    on_event: Subscriber | Sequence[Subscriber], hooks: Sequence[Subscriber] | None
) -> tuple[Subscriber, ...]:
    """
    Return the subscribers that a constructor was given, as *on_event* or under its old name *hooks*.

    The constructor calls this function directly, so that a warning names the line of the constructor's caller.

    Raises:
        ConfigError: Both are given, or the value is neither a function nor a sequence of functions.
    """
    name: str = "on_event"
    given: Any = on_event  # a user may pass any object
    if hooks is not None:
        if on_event != ():
            raise ConfigError(
                f"on_event={on_event!r} and hooks={hooks!r}: hooks is the old name of on_event. Pass only on_event"
            )
        warnings.warn("hooks is the old name of on_event. Write on_event=...", DeprecationWarning, stacklevel=3)
        name, given = "hooks", hooks
    subscribers = (given,) if callable(given) else tuple(given) if isinstance(given, Iterable) else None
    if subscribers is None or not all(callable(each) for each in subscribers):
        raise ConfigError(f"{name}={given!r} must be a function or a list of functions, each taking one event")
    return subscribers
