"""The verdict on faults that a training survives: it continues, knows of them, and stores steps again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .lives import FaultEnd, Injected, Life
from .plan import Pace
from .promise import Promise, last_error, told_exit
from .timings import FaultFigures

_SAVE_FACTOR: Final = 2
_SAVE_S: Final = 5.0
"""The next step is stored within :data:`_SAVE_FACTOR` times the longest time between two saves, and these seconds."""


def of_survived(life: Life, injected: Injected, figure: FaultFigures, pace: Pace) -> Iterator[Promise]:
    """Yield the promises for *injected*, a fault that leaves the processes alive."""
    name, end = f"{injected.fault.name} after step {injected.step}", injected.end
    yield _continues(f"{name}: training continues", life, injected, figure)
    if not injected.fault.hits_saves or end is None:
        return
    if injected.fault.refusal:
        said = next((each for each in life.log.refusals if injected.fault.refusal in each), None)
        text = "no event of a session speaks of it" if said is None else said
        yield Promise(f"{name}: the training says so", said is not None, text)
    if injected.fault.jump_s:
        text = f"the wall clock of its records has jumped by {life.log.jumped_s / 3600:.0f} h"
        yield Promise(f"{name}: the training sees it", life.log.jumped_s > injected.fault.jump_s / 2, text)
    yield _stores(f"{name}: steps are stored again", life, injected, end, pace)


def _continues(name: str, life: Life, injected: Injected, figure: FaultFigures) -> Promise:
    end, told = injected.end, injected.told
    if injected.fault.hits_saves and end is not None:
        told += f" for {end.at - injected.at:.0f} s, in which {end.step - injected.step} steps were done"
    if figure.next_step_s is not None:
        return Promise(name, True, f"{told}; a new step was done {max(0.0, figure.next_step_s):.1f} s later")
    is_over = life.exit_code == 0
    text = "the training came to its end" if is_over else f"{told_exit(life)} after step {life.reached_step}"
    return Promise(name, is_over, f"{told}; {text}{'' if is_over else last_error(life)}")


def _stores(name: str, life: Life, injected: Injected, end: FaultEnd, pace: Pace) -> Promise:
    if end.committed < injected.committed:
        return Promise(name, False, f"step {injected.committed} was stored before it, and was gone at its end")
    before = f"step {end.committed} was stored at its end" if end.committed else "no step was stored at its end"
    if life.log.committed > end.step or life.log.committed >= pace.last_step:
        return Promise(name, True, f"{before}, and step {life.log.committed} later")
    left_s = life.ended_at - end.at
    if life.exit_code == 0 or left_s > _SAVE_FACTOR * pace.longest_unsaved_s + _SAVE_S:
        text = f"{before}, and none of a later step in the {left_s:.0f} s that the training still ran"
        return Promise(name, False, text)
    return Promise(name, True, f"{before}, and the training ended {left_s:.0f} s later, before the next save was due")
