"""The runs of the trackers that a trainer reports to, which a resumed process continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from transformers import Trainer

from ..guard import warn
from . import tracker_internals as internals

OTHER_RUN: Final = (
    "report_to={name}: this process logs to run {run} and not to run {before}, because {problem}. The training "
    "itself continues. For one run, let the tracker keep its runs where each machine finds them, and give the id of "
    "the run if the program begins it"
)
OF_PROGRAM: Final = "the program has begun it"


class Trackers:
    """The runs of the trackers of one training. A step has their names, so that the next process continues them."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._before: Mapping[str, Mapping[str, Any]] = {}
        self._problems: dict[str, Exception] = {}

    def state(self) -> dict[str, dict[str, Any]]:
        """Return the runs that the trackers log to, by tracker. Only the rank that logs has any."""
        found = internals.trackers(self._trainer)
        return {name: tracker.state(self._trainer, callback) for name, tracker, callback in found}

    def resume(self, before: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """
        Continue the runs *before*, if they can be continued. Call it before the trackers begin.

        Args:
            before: What :meth:`state` returned at the saved step.
            step: The first step of which this process logs something.
        """
        self._before = before
        for name, tracker, callback in internals.trackers(self._trainer):
            if before.get(name):
                try:
                    tracker.resume(self._trainer, callback, before[name], step)
                except Exception as error:  # noqa: BLE001 - a tracker has its own errors, and none may end the training
                    self._problems[name] = error

    def begin(self) -> None:
        """Warn of each run that is another one than before. Call it after the trackers have begun."""
        for name, state in self.state().items():
            before, run = self._before.get(name, {}).get("run"), state.get("run")
            if before and run and run != before:
                problem = self._problems.get(name, OF_PROGRAM)
                warn(OTHER_RUN.format(name=repr(name), run=run, before=before, problem=problem))
