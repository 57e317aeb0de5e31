"""The runs of the trackers that a trainer reports to, which a resumed process continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from transformers import Trainer

from ..guard import warn
from . import tracker_internals

OTHER_RUN: Final = (
    "report_to={name!r}: this process logs to run {run} and not to run {before}, because {problem}. The training "
    "itself continues. For one run, let the tracker keep its runs where each machine finds them, and give the id of "
    "the run if the program begins it"
)
OF_PROGRAM: Final = "the program has begun it"


class Trackers:
    """The runs of the trackers of one training. A step has their names, so that the next process continues them."""

    def __init__(self, trainer: Trainer) -> None:
        self.runs: dict[str, str] = {}
        """Names of the runs, by tracker. Only the rank that logs has any, after :meth:`begin`."""
        self._trainer = trainer
        self._before: Mapping[str, str] = {}
        self._problems: dict[str, Exception] = {}

    def resume(self, before: Mapping[str, str], step: int) -> None:
        """
        Continue the runs *before*, if they can be continued. Call it before the trackers begin.

        Args:
            before: The names of the runs, from the saved step.
            step: The first step of which this process logs something.
        """
        self._before = before
        for name, tracker, callback in tracker_internals.trackers(self._trainer):
            if name in before:
                try:
                    tracker.resume(self._trainer, callback, before[name], step)
                except Exception as error:  # noqa: BLE001 - a tracker has its own errors, and none may end the training
                    self._problems[name] = error

    def begin(self) -> None:
        """Take note of the runs, and warn of each that is another one than before. Call it after the trackers began."""
        for name, tracker, callback in tracker_internals.trackers(self._trainer):
            run = tracker.run(self._trainer, callback)
            if run is not None:
                self.runs[name] = run
                before = self._before.get(name, run)
                if run != before:
                    problem = self._problems.get(name, OF_PROGRAM)
                    warn(OTHER_RUN.format(name=name, run=run, before=before, problem=problem))
