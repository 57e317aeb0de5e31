"""The guard of one session: what it is told, and what it says."""

from __future__ import annotations

import linecache
import re
import sys
import threading
from typing import ClassVar, Final
from weakref import WeakSet

from torch.optim import Optimizer

from ..state.registry import Registry
from .gradients import WaitingGradients
from .host import Host
from .optimizer_steps import OptimizerSteps
from .places import is_library_file, program_frames
from .search import Search
from .step_numbers import StepNumbers
from .warn import warn

STEPS_WITHOUT_REPORT: Final = 3
"""Optimizer steps until a bare loop is told that it never reports a step, if no file of it has that call."""
STEPS_BEFORE_REPORT: Final = 1000
"""The same, if some file of the program has that call."""
STEPS_OF_NEW: Final = 3
"""Steps after which an optimizer that begins late counts as one that stays."""
CALLS_TO_COMPARE: Final = 50
"""Reported steps after which they are compared with the steps of optimizers."""


class Guard:
    """
    Compares what a training does with what is saved, and says so once.

    A session opens it with itself, tells it of every step, and closes it. All methods run on the training thread.
    """

    _open: ClassVar[WeakSet[Guard]] = WeakSet()
    """Guards of this process."""

    _beside: ClassVar[WeakSet[Guard]] = WeakSet()
    """Guards of ranks that are threads of one process: each would find the objects of the others."""

    def __init__(self, host: Host, registry: Registry) -> None:
        self.host = host
        """The view of the host on its training."""
        self._registry = registry
        self._steps: OptimizerSteps | None = None
        self._search: Search | None = None
        self._numbers: StepNumbers | None = None
        self._thread = 0
        self._speaks = True
        self._num_reported = 0
        self._num_steps_at_begin = 0
        self._gradients = WaitingGradients()
        self._has_told_gradients = False
        self._is_unreported = True  # no step was reported, and nothing was said about that

    def open(self, *, speaks: bool) -> None:
        """Count the steps of optimizers. *speaks* is True on the rank that warns."""
        self._thread = threading.get_ident()
        self._speaks = speaks
        self._steps = OptimizerSteps(self._on_optimizer_step)
        for other in self._open:
            if other._thread != self._thread:
                self._beside.update((self, other))
        self._open.add(self)

    def begin(self, resumed_from: int | None) -> None:
        """Begin the training, which continues after *resumed_from* or begins anew."""
        assert self._steps is not None
        self._num_steps_at_begin = self._steps.total
        self._search = Search(self.host, self._registry, self._steps, speaks=self._speaks)
        if self.host.is_bare:
            self._numbers = StepNumbers(resumed_from)

    def before_step(self, step: int) -> None:
        """
        Check the number of *step*, before it is saved.

        Raises:
            ConfigError: See :meth:`.StepNumbers.check`.
        """
        self._is_unreported = False
        if self._search is not None:
            self._search.before_step()
        if self._numbers is not None:
            message = self._numbers.check(step)
            if message is not None and self._speaks:
                warn(message)

    def save(self) -> None:
        """Take note that the program saves by itself."""
        self._is_unreported = False
        self._look_for_gradients("save(step)")

    def after_step(self) -> bool:
        """
        Look for things that the training changes and no save holds, if it is time to.

        Returns:
            True if this took time that belongs to no step.

        Raises:
            ConfigError: Nothing that is trained is saved.
        """
        self._num_reported += 1
        if self._num_reported == CALLS_TO_COMPARE and self.host.is_bare:
            self._compare_calls()
        return self._search is not None and self not in self._beside and self._search.after_step()

    def pause(self) -> None:
        """Expect that loaders are read that the training does not depend on."""
        self._look_for_gradients("pause(step)")
        if self._search is not None:
            self._search.pause()

    def close(self) -> None:
        """Look no more. A second call does nothing."""
        self._open.discard(self)
        if self._steps is not None:
            self._steps.close()
        if self._search is not None:
            self._search.close()
        self._search = None

    def _on_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._steps is None or threading.get_ident() != self._thread:
            return
        if self.host.is_bare:
            self._gradients.end_step(optimizer)
        if self._search is not None and self._steps.of(optimizer) == STEPS_OF_NEW:
            self._search.expect_new()
        if not self._is_unreported:
            return
        num_steps = self._steps.total
        if num_steps not in (STEPS_WITHOUT_REPORT, STEPS_BEFORE_REPORT) or not self.host.is_bare:
            return
        if num_steps == STEPS_WITHOUT_REPORT and _program_reports():
            return
        self._is_unreported = False
        if self._speaks:
            call = "after_step(step)" if self._search is not None else "resume() and after_step(step)"
            warn(
                f"{num_steps} optimizer steps, and session.{call} was not called: nothing is saved, and a notice is "
                f"not obeyed. Call resume() before the first step, and after_step(step) after each optimizer step"
            )

    def _look_for_gradients(self, call: str) -> None:
        """Warn, once, if *call* comes within an accumulation of gradients."""
        if self._has_told_gradients or not (self.host.is_bare and self._speaks):
            return
        if self._gradients.exist():
            self._has_told_gradients = True
            warn(
                f"session.{call} was called while gradients wait for an optimizer step. They are not saved, so if a "
                f"resume continues from here, and the position counts their batches, these are left out. Call it right "
                f"after optimizer.step(), or count batches in the saved position only when their step is done"
            )

    def _compare_calls(self) -> None:
        assert self._steps is not None
        num_steps = self._steps.total - self._num_steps_at_begin
        if self._speaks and 0 < num_steps <= self._num_reported // 2:
            warn(
                f"after_step() was called {self._num_reported} times, and optimizers made {num_steps} steps: a save "
                f"between two optimizer steps loses the gradients that were accumulated so far. Call it only after "
                f"optimizer.step()"
            )


def _program_reports() -> bool:
    """Return True if some file of the program calls ``after_step()``, or a ``save()`` other than torch's."""
    files = {frame.f_code.co_filename for frame in program_frames(sys._getframe(1))}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py") and not is_library_file(file):
            files.add(file)
    return any(_REPORT.search(line) for file in files for line in linecache.getlines(file))


_REPORT: Final = re.compile(r"after_step|(?<!torch)\.save\(")
