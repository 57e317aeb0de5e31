"""
The lines at the start of every attempt: where it begins, what differs, who is asked for notices, unsuitable packages.

And the line at the end of an attempt that its user interrupts.
"""

from __future__ import annotations

import logging

from ..config import printable_url
from ..events import Resumed
from ..program import Program
from .milestones import Milestones
from .opened import Opened


def show_banner(it: Opened, program: Program, resumed: Resumed | None) -> None:
    """Show where training starts, the differences from the checkpoint, and the notices. On rank 0, after the resume."""
    world_size = it.job.world_size
    url = printable_url(it.run.url)
    facts = [f"attempt {it.run.attempt}"]
    if resumed is not None and program.epoch is not None:
        facts.insert(0, f"epoch {program.epoch()}")
    if resumed is not None and resumed.from_world_size != world_size:
        facts.append(f"{_ranks(world_size)}, saved by {resumed.from_world_size}, so last digits may differ")
    elif world_size > 1:
        facts.append(_ranks(world_size))
    if resumed is None:
        text = f"no checkpoint at {url}, starting {program.start}"
    else:
        text = f"resumed from step {resumed.step} of {url}, {resumed.load_s:.1f} s"
    it.lines.say_first(f"{text} ({', '.join(facts)})")
    if resumed is not None:
        program.check_schedules(resumed.from_world_size, world_size)
    program.tell(it.lines)
    if (notices := it.listener.summary) is not None:
        it.lines.say_first(notices)
    for each in it.unsuitable:
        it.lines.say_first(f"{each.problem}. To correct it: {each.remedy}", logging.WARNING)


def show_interrupt(it: Opened, milestones: Milestones, error: BaseException) -> None:
    """Show which step is stored, on rank 0, if *error*, which has ended the training, is ``KeyboardInterrupt``."""
    if not isinstance(error, KeyboardInterrupt):
        return
    step = milestones.last_committed_step or milestones.resumed_from
    stored = "nothing is stored yet" if step is None else f"step {step} is the newest one stored"
    it.lines.say_first(f"interrupted: {stored}. To save the last step too, end the training with SIGTERM")


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"
