"""
The lines that a user sees without any set-up of logging: the start, differences, notices and the way out.

They are records of the logger ``spot_plugins.run``. Python shows no record below WARNING by default, so this logger has
a handler of its own and decides by itself which level is shown.

A user silences the lines by the level of ``spot_plugins``, by a level of the root logger above WARNING, by
``logging.disable``, or by the level of the host's logger. If the root logger or ``spot_plugins`` has a handler, the
lines go there and nowhere else, so that no line is shown twice.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..machine.threads import NoThreadError, start_thread

LOGGER: Final = logging.getLogger("spot_plugins.run")

ANSWER_WAIT_S: Final = 0.2
"""Longest wait in seconds for a line that answers a notice. It takes that long only if nobody reads stderr."""


class OwnHandler(logging.Handler):
    """Base of handlers of this package. Beside one of them the lines are still shown on stderr."""


class StderrHandler(OwnHandler):
    """
    Writes records to stderr if no other handler gets them.

    A stream that is closed, or has no reader any more, is ignored, because a line is never worth a training.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record* in one piece, so that the lines of several ranks do not mix."""
        stream = sys.stderr
        if stream is None or others_handle(record.name):
            return
        rank = getattr(record, "spot_rank", 0)
        name = f"spot_plugins rank {rank}" if rank else "spot_plugins"
        try:
            stream.write(f"{name}: {record.getMessage().removeprefix(f'rank {rank}: ')}\n")
            stream.flush()
        except (OSError, ValueError):
            return


if not any(isinstance(each, StderrHandler) for each in LOGGER.handlers):
    LOGGER.addHandler(StderrHandler())


class Lines:
    """
    The lines of one rank.

    Args:
        rank: Number of this rank. All but rank 0 name it in their lines.
        host_level: Returns the lowest level that the host shows.
    """

    def __init__(self, rank: int, host_level: Callable[[], int]) -> None:
        self._rank = rank
        self._host_level = host_level

    def say(self, text: str, level: int = logging.INFO) -> None:
        """Show *text* as a line of this rank, unless the user has silenced its *level*. It never raises."""
        if level < max(_lowest_level(), self._host_level()) or level <= LOGGER.manager.disable:
            return
        message = f"rank {self._rank}: {text}" if self._rank else text
        record = LOGGER.makeRecord(LOGGER.name, level, __file__, 0, message, (), None, extra={"spot_rank": self._rank})
        LOGGER.handle(record)

    def say_first(self, text: str, level: int = logging.INFO) -> None:
        """Show *text* on rank 0, where all ranks would say the same."""
        if self._rank == 0:
            self.say(text, level)

    def answer(self, text: str, level: int = logging.INFO) -> None:
        """
        Show *text* from a thread of its own, because a notice must be passed on even if nobody reads stderr.

        It waits for a moment, so that this line comes before the next one. Without room for a thread, there is no line.
        """
        speaker = threading.Thread(target=self.say, args=(text, level), name="spot-line", daemon=True)
        with suppress(NoThreadError):
            # wait: ANSWER_WAIT_S; the line may come later, or never if nobody reads stderr
            start_thread(speaker).join(ANSWER_WAIT_S)


def _lowest_level() -> int:
    """Return the lowest level that the user wants to see. The level of the root logger is WARNING by default."""
    for name in (LOGGER.name, "spot_plugins"):
        if (level := logging.getLogger(name).level) != logging.NOTSET:
            return level
    level = logging.getLogger().level
    return level if level > logging.WARNING else logging.INFO


def others_handle(name: str) -> bool:
    """Return whether a handler that is not ours gets the records of the logger *name*."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(not isinstance(each, OwnHandler) for each in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
