"""Learning rate schedulers: those that nobody has prepared, and all of them on another number of processes."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

from accelerate import Accelerator
from accelerate.scheduler import AcceleratedScheduler
from torch.optim.lr_scheduler import LRScheduler

from ..errors import UnsafeStateError
from ..loop.told import Told
from ..program.rates import other_rate
from ..state import encode
from . import internals
from .cadence import Cadence, Scale, natural_steps_per_call, steps_per_call

UNSAVED: Final = (
    "{kind} is not prepared and cannot be saved, so the learning rate begins anew with each resume: {problem}. Pass it "
    "to accelerator.prepare(), or to accelerator.register_for_checkpointing()"
)
LATE: Final = (
    "{kind} was made after spot.resume(), so the learning rate begins anew with each resume. Make it before, and pass "
    "it to accelerator.prepare()"
)


class Schedules:
    """
    The schedulers of a loop, prepared or not.

    A schedule is made for the number of processes and the accumulation with which the run began. On another number of
    processes each call of a prepared scheduler makes as many steps as the samples since the last call are worth.
    """

    def __init__(self, accelerator: Accelerator, registered: list[Any], told: Told) -> None:
        self._accelerator = accelerator
        self._registered = registered
        self._told = told
        self._found: dict[str, Any] = {}
        self._first: Scale | None = None  # None: this process began the run
        self._saved: Scale | None = None  # of the process that saved the step
        self._cadences: dict[int, Cadence] = {}
        self._paced: dict[int, _PacedStep] = {}
        self._owed: dict[str, list[int]] = {}

    def find(self) -> None:
        """
        Find the schedulers that are bound to prepared optimizers and that nobody saves.

        They are saved by the number of their optimizer and the name of their class. A warning names those that cannot
        be told apart in this way.
        """
        unsaved = list(self._unsaved())
        names = Counter(name for name, _ in unsaved)
        for name, scheduler in unsaved:
            problem = "another one of the same class is bound to the same optimizer" if names[name] > 1 else None
            try:
                encode(scheduler.state_dict())
            except UnsafeStateError as error:
                problem = str(error)
            if problem is None:
                self._found[name] = scheduler
            else:
                self._told(UNSAVED, about=scheduler, kind=type(scheduler).__name__, problem=problem)

    def name_late(self) -> None:
        """Warn of schedulers that were made after :meth:`find`. Call it after the first step."""
        for _, scheduler in self._unsaved():
            if not any(scheduler is each for each in self._found.values()):
                self._told(LATE, about=scheduler, kind=type(scheduler).__name__)

    def begin_anew(self) -> None:
        """Take the schedules as those of this process, because the program has set another accumulation."""
        self._first = None

    def state_dict(self, now: Scale) -> dict[str, Any]:
        """Return what there is to save beside the prepared schedulers. It is empty in most loops."""
        state: dict[str, Any] = {}
        if self._found:
            state["found"] = {name: scheduler.state_dict() for name, scheduler in self._found.items()}
        if self._first is not None and self._first != now:
            state["first"] = self._first.state_dict()
            state["cadences"] = {str(index): each.value for index, each in self._cadences.items()}
            owed = {str(index): paced.owed for index, paced in self._paced.items() if paced.owed}
            state["owed"] = {index: [each.numerator, each.denominator] for index, each in owed.items()}
        return state

    def load_state_dict(self, state: dict[str, Any], saved: Scale) -> None:
        """Restore what :meth:`state_dict` returned in a process of the scale *saved*."""
        self._saved = saved
        self._first = Scale.of_state(state["first"]) if "first" in state else saved
        self._cadences = {int(index): Cadence(value) for index, value in state.get("cadences", {}).items()}
        self._owed = state.get("owed", {})
        found = state.get("found", {})
        for name, scheduler in self._found.items():
            if name in found:
                scheduler.load_state_dict(found[name])
        for name in found.keys() ^ self._found.keys():
            where = "the checkpoint" if name in found else "this program"
            warnings.warn(
                f"only {where} has a {name.split('-')[-1]} that is not prepared, so the learning rate may differ from "
                f"the one before. Make it before spot.resume(), and pass it to accelerator.prepare()",
                stacklevel=4,
            )

    def resume(self, now: Scale, num_optimizer_steps: int) -> None:
        """
        Let the schedules continue per sample on the scale *now*. Call it after everything was loaded.

        Args:
            now: The scale after the change of accumulation.
            num_optimizer_steps: Optimizer steps that the run has done.
        """
        if self._saved is None:
            return
        for index, scheduler in enumerate(internals.schedulers(self._accelerator)):
            if self._first is None or not isinstance(scheduler, AcceleratedScheduler):
                continue
            is_tied = scheduler.step_with_optimizer
            if index not in self._cadences:
                num_steps = getattr(scheduler.scheduler, "last_epoch", None)
                if num_steps is None:
                    num_steps = num_optimizer_steps
                per_call = natural_steps_per_call(self._saved, is_tied=is_tied)
                accumulation = 1 if is_tied else self._saved.accumulation
                self._cadences[index] = Cadence.of(num_steps, per_call, num_optimizer_steps, accumulation)
            wanted = steps_per_call(self._cadences[index], self._first, now, is_tied=is_tied)
            if wanted != natural_steps_per_call(now, is_tied=is_tied):
                owed = Fraction(*self._owed.get(str(index), (0, 1)))
                self._paced[index] = paced = _PacedStep(scheduler, wanted, self._first.accumulation, owed)
                scheduler.step = paced
        for scheduler in self._found.values():
            if (text := other_rate(scheduler)) is not None:
                warnings.warn(text, stacklevel=4)
            self._name_unpaced(scheduler, now, num_optimizer_steps)

    def _name_unpaced(self, scheduler: Any, now: Scale, num_optimizer_steps: int) -> None:
        if self._first is None or self._saved is None or now == self._saved:
            return
        cadence = Cadence.of(scheduler.last_epoch, 1, num_optimizer_steps, self._saved.accumulation)
        if steps_per_call(cadence, self._first, now, is_tied=False) != 1:
            warnings.warn(
                f"{type(scheduler).__name__} is not prepared, so it makes a step per call and not per sample. On this "
                f"number of processes its schedule ends at another sample than before. Pass it to "
                f"accelerator.prepare()",
                stacklevel=4,
            )

    def _unsaved(self) -> Iterator[tuple[str, Any]]:
        """Yield each scheduler of torch that trains a prepared optimizer and that nobody saves, with a name."""
        wrapped = internals.optimizers(self._accelerator)
        number_of = {id(each): index for index, each in enumerate(wrapped)}
        number_of |= {id(each.optimizer): index for index, each in enumerate(wrapped)}
        if not any(internals.has_scheduler(holder) for each in wrapped for holder in (each, each.optimizer)):
            return  # the search below takes some 50 ms
        saved = [getattr(each, "scheduler", each) for each in internals.schedulers(self._accelerator)]
        for holder in (*internals.custom_objects(self._accelerator), *self._registered):
            saved += [holder, *getattr(holder, "__dict__", {}).values()]
        # type(), because isinstance() would also ask lazy objects of other libraries, which then import something.
        candidates = [each for each in gc.get_objects() if issubclass(type(each), LRScheduler)]
        inner = {id(each) for outer in candidates for each in internals.inner_schedulers(outer)}
        known = {id(each) for each in saved} | inner
        found = []
        for scheduler in candidates:
            number = number_of.get(id(getattr(scheduler, "optimizer", None)))
            if number is not None and id(scheduler) not in known:
                found.append((f"optimizer-{number}-{type(scheduler).__name__}", scheduler))
        yield from sorted(found, key=lambda pair: pair[0])


class _PacedStep:
    """The ``step()`` of a prepared scheduler that makes another number of steps than Accelerate would."""

    def __init__(self, wrapped: AcceleratedScheduler, per_call: Fraction, accumulation: int, owed: Fraction) -> None:
        self.owed = owed
        """A part of a step that earlier calls have left over."""
        self._wrapped = wrapped
        self._per_call = per_call
        self._accumulation = accumulation  # of the run at first
        inner = wrapped.scheduler
        counted = internals.steps_counted(inner)
        self._counts_batches = counted is not None and counted > getattr(inner, "last_epoch", 0) + 1

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Make the steps of one call, as Accelerate does it."""
        inner, wrapped = self._wrapped.scheduler, self._wrapped
        if wrapped.step_with_optimizer:
            if not wrapped.gradient_state.sync_gradients or any(each.step_was_skipped for each in wrapped.optimizers):
                return
            if self._counts_batches and wrapped.gradient_state.adjust_scheduler:
                # Accelerate counts each batch of a window as a step, for schedules with a fixed number of steps.
                internals.add_to_steps_counted(inner, self._accumulation - 1)
        self.owed += self._per_call
        while self.owed >= 1:
            self.owed -= 1
            counted = internals.steps_counted(inner)
            has_end = wrapped.step_with_optimizer and hasattr(inner, "total_steps")
            if not has_end or counted is None or counted <= inner.total_steps:
                inner.step(*args, **kwargs)
