"""Checks of the step numbers that a bare loop passes to ``after_step()``."""

from __future__ import annotations

from ..errors import ConfigError


class StepNumbers:
    """The numbers of the steps of a bare loop, since its resume."""

    def __init__(self, resumed_from: int | None) -> None:
        """Expect numbers after *resumed_from*, the step that this process continues from."""
        self._resumed_from = resumed_from
        self._last = resumed_from
        self._first: list[int] = []
        self._has_warned = False

    def check(self, step: int) -> str | None:
        """
        Check the number of the next *step*.

        Returns:
            A warning, or None.

        Raises:
            ConfigError: The numbers do not go up. A resume takes the highest number, so it would not be the last step.
        """
        last, self._last = self._last, step
        if last is None or step > last:
            return self._jump(step)
        if not self._first and self._resumed_from is not None:
            raise ConfigError(
                f"after_step({step}) after a resume from step {last}: the program does not continue after the step "
                f"that resume() returned. Begin with `step = session.resume() or 0`, and add 1 before after_step(step)"
            )
        if step < last:
            raise ConfigError(
                f"after_step({step}) after after_step({last}): the numbers must go up over all epochs, because a "
                f"resume takes the highest one. Count the optimizer steps of the whole training"
            )
        if self._has_warned:
            return None
        self._has_warned = True
        return (
            f"after_step({step}) was called twice: a step that was saved is not saved again, so what the training did "
            f"between the two calls may be lost. Call it once after each optimizer step, with the next number"
        )

    def _jump(self, step: int) -> str | None:
        """Return a warning if the first numbers after a resume are evenly spaced, but not from where it resumed."""
        if self._resumed_from is None or len(self._first) >= 3:
            return None
        self._first.append(step)
        if len(self._first) < 3:
            return None
        one, two, three = self._first
        if three - two == two - one != one - self._resumed_from:
            return (
                f"the first step after a resume from step {self._resumed_from} was after_step({one}), and the next "
                f"ones are {two - one} apart: the program does not continue after the step that resume() returned. "
                f"Begin with `step = session.resume() or 0`"
            )
        return None
