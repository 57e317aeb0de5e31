"""The number of batches that an optimizer step is made of, on another number of processes."""

from __future__ import annotations

from collections.abc import Callable

from ..guard import warn


def accumulation_that_keeps(
    before: int, here: int, *, at_once: int, num_processes: int, advice: str | None, say: Callable[[str], None]
) -> int | None:
    """
    Return the gradient accumulation with which a step is made of as many batches as before.

    Args:
        before: Batches that a step was made of, over all processes.
        here: Batches that a step is made of now.
        at_once: Batches that all processes take at a time.
        num_processes: Processes that train together.
        advice: The way to let the loop accumulate gradients, if it does not. It follows the word "because".
        say: Shows a line to the user.

    Returns:
        None if nothing has to change, or if nothing can. In the last case a warning says so.
    """
    if before == here:
        return None
    changed = f"an optimizer step is made of {here} batches now instead of {before}"
    if advice is not None:
        warn(f"{changed}, because {advice}, and accumulation makes up for another number of processes")
        return None
    if before % at_once:
        warn(f"{changed}, which do not divide over {at_once} processes")
        return None
    say(
        f"gradient_accumulation_steps={before // at_once} on {num_processes} processes: an optimizer step is made of "
        f"{before} batches, as before"
    )
    return before // at_once
