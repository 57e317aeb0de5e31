"""The price, asked for again and again until somebody ends the process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from .notify import NotifyError


@dataclass(slots=True)
class Watch:
    """
    Rounds of one question, with a message when an offer falls below a price.

    There is one message each time that the price falls below, not one per round. A message that does not arrive is sent
    again in the next round.
    """

    every_s: float
    look: Callable[[], bool]
    """One round: asks, prints, and returns whether an offer is below the price."""
    send: Callable[[], object]
    """Sends the message. Raises :exc:`.NotifyError`."""
    tell: Callable[[str], object]
    """Called with a line about a message that did not arrive."""
    is_told: bool = field(default=False, init=False)

    def run(self) -> NoReturn:
        """Look for ever. Only an exception, such as that of a signal handler, ends it."""
        while True:
            started = time.monotonic()
            self.round()
            # wait: every_s from the start of one round to the next; the next round begins
            time.sleep(max(0.0, self.every_s - (time.monotonic() - started)))

    def round(self) -> None:
        """Look once, and send the message if the price has fallen below since the last one."""
        if not self.look():
            self.is_told = False
        elif not self.is_told:
            try:
                self.send()
                self.is_told = True
            except NotifyError as error:
                self.tell(f"the message was not delivered: {error}. It is sent again in the next round")
