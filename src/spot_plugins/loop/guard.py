"""Comparisons of what the optimizers of a loop do with what the loop reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from torch.optim import Optimizer

from ..guard import OptimizerSteps, name_of
from .framework import Framework
from .handouts import HandOuts
from .told import Told
from .trainers import Trainers

NUM_FORGOTTEN: Final = 8
"""Batches with a step of an optimizer, and without ``after_step()``, after which it counts as forgotten."""
NUM_RARE: Final = 32
"""Batches with a step of an optimizer since the last ``after_step()``, after which a warning says what that means."""
NUM_UNSEEN: Final = 64
"""Calls of ``after_step()`` without any step of an optimizer, after which a warning says that nothing is saved."""
NUM_UNREPORTED: Final = 100
"""Steps of one optimizer, without ``spot.batches()`` and ``after_step()``, after which a warning says so."""

FORGOTTEN: Final = (
    "optimizers have stepped on {number} batches, and spot.after_step() was not called. A step is reported for you "
    "whenever the loop asks for its next batch. Call spot.after_step() at the end of the body instead"
)
RARE: Final = (
    "optimizers have stepped on {number} batches since the last spot.after_step(). Until it is called nothing is "
    "saved, and a notice is not obeyed. Call it at the end of the body, for every batch"
)
UNSEEN: Final = (
    "no optimizer has stepped in {number} calls of spot.after_step(), so nothing is saved. If the loop changes weights "
    "without the step of a torch optimizer (a CUDA graph, LOMO, by hand), call spot.after_step(stepped=True)"
)
UNREPORTED: Final = (
    "an optimizer has made {number} steps, and neither spot.batches() nor spot.after_step() was called. Until then "
    "nothing is saved, and a notice is not obeyed. Call spot.after_step() after every step"
)
ORDER: Final = (
    "after_step() was called before optimizer.step(): no optimizer has stepped on the batch that was handed out last, "
    "so a resumed run would leave that batch out. Call after_step() at the end of the body"
)
ACTIVE: Final = (
    "a prepared loader is in use in the middle of training without spot.batches(), so the position in the data of "
    "{name} is not saved. If the loop trains on it, take its batches from spot.batches(loader). If a validation was "
    "left by `break`, write it into `with spot.pause():`"
)


class LoopGuard:
    """
    Decides which batches make a step, and warns of loops that could not be resumed exactly.

    A step is one in which an optimizer stepped while the framework does not accumulate gradients. A step that the
    scaler leaves out, because of an overflow, counts too.

    Args:
        framework: The framework under the loop.
        end_steps: Called with a number of steps that the loop has not reported itself.
        told: The warnings of the loop.
    """

    def __init__(self, framework: Framework, end_steps: Callable[[int], None], told: Told) -> None:
        self.told = told
        self.handouts = HandOuts(told)
        self._framework = framework
        self._end_steps = end_steps
        self._counts: OptimizerSteps | None = None
        self._num_tried = 0  # steps of optimizers with a scaler, whether they were left out or not
        self._at_step = 0  # steps of optimizers at the last step that was reported
        self._at_hand_out = 0  # the same when the last batch was handed out
        self._calls: int | None = None  # calls of after_step() since the last step; None: never called
        self._num_unreported = 0  # batches on which an optimizer stepped, since the last call of after_step()
        self._trainers = Trainers(framework, told)
        self._is_within = False  # gradients of batches before are waiting for a step

    def open(self, registered: Iterable[Any]) -> None:
        """Begin to count. The optimizers that train are those of the framework and those among *registered*."""
        self._trainers.expect(registered)
        self._counts = OptimizerSteps(self._on_step)
        self._framework.count_tries(self._on_try)

    def close(self) -> None:
        """Count no more."""
        if self._counts is not None:
            self._counts.close()

    @property
    def is_within_step(self) -> bool:
        """True if something was done for a step that has not ended, so that the state is that of no step."""
        return self._total > self._at_step or self._is_within or self._framework.is_accumulating

    def request(self) -> None:
        """Take note that the loop asks for a batch. It ends a step if the loop does not report its steps itself."""
        self.handouts.confirm()
        if self._total == self._at_hand_out or self._framework.is_accumulating:
            return
        self._at_hand_out = self._total
        self._num_unreported += 1
        is_forgotten = self._calls is None and (self._at_step > 0 or self._num_unreported >= NUM_FORGOTTEN)
        if is_forgotten:
            self._end_for_loop()
        elif self._num_unreported == NUM_RARE:
            self.told(RARE, number=NUM_RARE)

    def hand_out(self, index: int) -> None:
        """Take note that loader *index* handed out a batch."""
        self.handouts.hand_out(index)
        self._at_hand_out = self._total

    def after_step(self, stepped: bool | None) -> bool:
        """
        Return True if the batch that ends now makes a step.

        Args:
            stepped: The word of the program. None: find out.
        """
        self._calls = (self._calls or 0) + 1
        self._num_unreported = 0
        if stepped is None:
            if self._framework.is_accumulating:
                return False
            if self._total == self._at_step:
                self._is_within = self._trainers.have_gradients()
                if self._total == 0 and self._calls == NUM_UNSEEN:
                    self.told(UNSEEN, number=NUM_UNSEEN)
                return False
            if self.handouts.since_step and self._total == self._at_hand_out:
                self.told(ORDER)
                self.handouts.is_told = True
        elif not stepped:
            self._is_within = True
            return False
        self._end()
        return True

    def skip_pause(self, before: int) -> None:
        """Leave out the steps that optimizers made in a pause, which began when there were *before* of them."""
        made = self._total - before
        self._at_step += made
        self._at_hand_out += made

    def finish(self) -> None:
        """Report the steps that the loop has not reported when the training ends."""
        self.handouts.confirm()
        if self._total == self._at_step or self._is_within or self._framework.is_accumulating:
            return
        if self.handouts.total == 0:
            self.told(UNREPORTED, number=self._total)
        if self._total > self._at_hand_out:
            self._num_unreported += 1
        self._end_for_loop()

    @property
    def num_optimizer_steps(self) -> int:
        """Steps of all optimizers since :meth:`open`, with those that a scaler left out."""
        return self._total

    @property
    def _total(self) -> int:
        return self._num_tried + (0 if self._counts is None else self._counts.total)

    def _end(self) -> None:
        self._at_step, self._is_within = self._total, False
        self._trainers.end_step()
        self.handouts.end_step()

    def _end_for_loop(self) -> None:
        number, self._num_unreported = max(self._num_unreported, 1), 0
        if self.handouts.total > 0 and self._calls is None:
            self.told(FORGOTTEN, number=number)
        self._end()
        self._end_steps(number)

    def name_active(self, tracked: Iterable[Any]) -> None:
        """Warn of a loader that is in use and is none of the *tracked* ones, whose positions are saved."""
        active = self._framework.active_loaders
        if self.handouts.total > 0 and len(active) > 1:
            known = [*tracked]
            for loader in active:
                if loader is not None and not any(loader is each for each in known):
                    self.told(ACTIVE, about=loader, name=name_of(loader))

    def _on_step(self, optimizer: Optimizer) -> None:
        self._trainers.step(optimizer)
        is_unwatched = self._calls is None and self.handouts.total == 0
        if is_unwatched and self._counts is not None and self._counts.of(optimizer) == NUM_UNREPORTED:
            self.told(UNREPORTED, number=NUM_UNREPORTED)

    def _on_try(self) -> None:
        self._num_tried += not self._framework.is_accumulating
