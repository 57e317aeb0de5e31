"""A session that is part of a drill: it trains at a place of the drill, says so, and ends after a given step."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace

from ..config import SpotConfig
from ..events import CheckpointRejected, Event
from ..launch.drilled import DrillFolder, Rank, drilled, run_name
from ..program.lines import LOGGER, OwnHandler, others_handle
from .opened import Opened


class Drilling:
    """
    The drill that this process is part of, or none.

    Args:
        config: The settings of the program.
    """

    def __init__(self, config: SpotConfig) -> None:
        self._drill = drilled()
        self._url = config.url
        self.config = config if self._drill is None else self._drill.config(config)
        """The settings that count."""
        self._rejected = dict[int, str]()

    def on_event(self, event: Event) -> None:
        """Remember the steps that a resume cannot use."""
        if isinstance(event, CheckpointRejected):
            self._rejected[event.step] = event.reason

    def begin(self, it: Opened, stack: ExitStack) -> None:
        """Say that this is a drill, and make this rank known to it. *stack* ends what is begun here."""
        if self._drill is None:
            return
        it.lines.say_first(self._drill.banner(self._url))
        folder = self._drill.folder
        words = _WordsHandler(folder)
        logger = logging.getLogger("spot_plugins")
        logger.addHandler(words)
        stack.callback(logger.removeHandler, words)
        self._write_rank(it, None)

    def resumed(self, it: Opened, step: int | None) -> None:
        """
        Let the drill know that training continues after *step*, None on a first run, and which steps were rejected.

        Call this before the drill sees a step. It may kill everything then, before the event log is stored.
        """
        self._write_rank(it, step or 0)

    def end(self, step: int, finish: Callable[[int], None]) -> None:
        """
        End the training if *step* is the last one of the drill. *finish* stores it.

        Raises:
            SystemExit: The training has ended well.
        """
        if self._drill is not None and self._drill.max_steps is not None and step >= self._drill.max_steps:
            finish(step)
            raise SystemExit(0)

    def _write_rank(self, it: Opened, start: int | None) -> None:
        if self._drill is not None:
            name = run_name(self._url)
            known = Rank(pid=os.getpid(), rank=it.job.rank, attempt=it.run.attempt, run=name)
            self._drill.folder.write_rank(replace(known, start=start, rejected=self._rejected))


class _WordsHandler(OwnHandler):
    """Keeps warnings and errors for the report of the drill."""

    def __init__(self, folder: DrillFolder) -> None:
        super().__init__(logging.WARNING)
        self._folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        """Keep *record*. A disk that takes no words is ignored, because training continues without them."""
        with suppress(OSError):
            self._folder.write_words(record.getMessage())
        # Python shows a warning on stderr only if there is no handler at all.
        if record.name != LOGGER.name and not others_handle(record.name) and logging.lastResort is not None:
            logging.lastResort.handle(record)
