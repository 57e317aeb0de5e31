"""
The lines at the start of every attempt: where it begins, what differs, who is asked for notices, unsuitable packages.

And the line at the end of an attempt that its user interrupts, or that fails because a rank is lost.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from ..config import printable_url
from ..errors import Preempted
from ..events import Resumed
from ..leave.way_out import POLL_S
from ..program import Program
from ..ranks import RankLostError
from .opened import Opened

LOSS_S: Final = 1.0
"""Longest wait in seconds, after an error that a collective may have raised, until the loss of a rank is known."""


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


def show_failure(it: Opened, error: BaseException) -> None:
    """
    Show what a user has to know about *error*, which has ended the training.

    After ``KeyboardInterrupt`` rank 0 shows which step is stored. If a rank is lost, each rank names it, because the
    error of a collective names none. On Python 3.11 or newer that also follows the error's own text.
    """
    stored = it.saved_steps.describe_stored()
    if isinstance(error, KeyboardInterrupt):
        it.lines.say_first(f"interrupted: {stored}. To save the last step too, end the training with SIGTERM")
    elif not isinstance(error, Preempted) and (lost := _lost_rank(it, error)) is not None:
        text = f"{lost}, which may be why this rank fails: {stored}. Let the launcher start the ranks again"
        it.lines.say(text, logging.ERROR)
        if hasattr(error, "add_note"):
            error.add_note(f"spot_plugins: {text}")


def _lost_rank(it: Opened, error: BaseException) -> RankLostError | None:
    """Return the lost rank. A collective may fail a moment before the board knows the loss."""
    deadline = time.monotonic() + LOSS_S
    may_follow = isinstance(error, RuntimeError) and it.job.world_size > 1
    while it.agreement.lost is None and may_follow and time.monotonic() < deadline:
        # wait: LOSS_S; the error is raised without a word about ranks
        time.sleep(POLL_S)
    return it.agreement.lost


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"
