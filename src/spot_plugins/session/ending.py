"""The end of a training that is done: stored on all ranks, or an error that says what is missing."""

from __future__ import annotations

import logging
import time
from typing import Final, cast

from ..config import printable_url
from ..errors import CommitError
from ..push.messages import PruneRequest
from ..ranks import Meeting, texts_of_ranks
from .opened import Opened

logger = logging.getLogger(__name__)

PRUNE_S: Final = 30.0
"""Longest wait in seconds for the removal of old steps at the end of a training."""

_SUPERSEDED: Final = "superseded"
_MISSING: Final = "the end of the training is not stored, and "
_UNKNOWN: Final = "it is not known whether the end of the training is stored, because "
_SILENT: Final = f"{_UNKNOWN}the rank does not answer"


def end_of(it: Opened, step: int) -> str | None:
    """Return the reason why this rank's share of *step*, the last one, is not stored. None if it is."""
    if it.pusher.ledger.is_superseded:
        return _SUPERSEDED
    if not it.pusher.has_ended(step):
        return f"{_MISSING}the pusher process continues to try. Leave the machine on until that process ends"
    if not it.saved_steps.has(step):
        return f"{_MISSING}no process tries it any more. See the warnings in the log"
    return None


def check_ends(step: int, meeting: Meeting, world_size: int) -> None:
    """
    Check that all ranks have stored their share of *step*, the last one.

    If rank 0 has ended before, it has checked that, or has failed. Then this rank checks what it knows.
    If a newer attempt has taken over the run, nothing of it is lost, so an error is logged only.

    Raises:
        CommitError: A share is not stored, or that is not known.
    """
    unknown = None if meeting.is_cut_off else _SILENT if meeting.lost is None else f"{_UNKNOWN}{meeting.lost}"
    ends = [cast("str | None", meeting.notes.get(rank, unknown)) for rank in range(world_size)]
    if _SUPERSEDED in ends:
        logger.error("step %s is not stored, and will not be: a newer attempt of the same run has started", step)
    elif text := texts_of_ranks(ends):
        raise CommitError(step, text)


def settle(it: Opened, step: int) -> None:
    """
    Let rank 0 release and remove the steps that nobody needs after *step*, the last one, and wait for that.

    A container may end with the training, and the pusher process with the container. The pruning that follows each
    commit may also come before another rank has stored its share, and so leave a step.

    Raises:
        Preempted: There was a notice.
    """
    it.keeper.on_visible(step)
    if it.job.rank != 0 or it.pusher.ledger.is_superseded:
        return
    it.pusher.ask(PruneRequest())
    it.way_out.wait(lambda: not it.pusher.wishes, step, time.monotonic() + PRUNE_S)
    if not it.pusher.wishes.is_pruned:
        it.lines.say(
            f"more than the last steps are left at {printable_url(it.run.url)}, because the pusher process has not "
            f"removed the older ones within {PRUNE_S:.0f} s. spot prune removes them",
            logging.WARNING,
        )
