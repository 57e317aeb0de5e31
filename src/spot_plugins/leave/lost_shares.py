"""The wait for the shares of ranks that have ended in a last save. The ranks that are left store them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ..errors import SpotError, StoreError
from ..events import ShareFinished
from ..machine.threads import NoThreadError
from ..program import Lines
from ..push import LostError, Pusher
from ..push.ledger import MAX_TRIES
from ..ranks import ENDED, Job
from ..resume.join import Membership
from ..save import NO_MEMORY, SavedSteps
from ..store import attentively

LOOK_S: Final = 1.0
"""Seconds between two looks at the list of the step."""

TURN_S: Final = 10.0
"""Seconds after which a share that is still missing is dealt to another rank, too. The first one may have ended."""

UNPREPARED: Final = "its prepared manifest is not stored, so its own state is unknown"

TOO_LATE: Final = "the time was over before"


class LostShares:
    """
    Stays until the share of every rank is stored, and stores those that are dealt to this rank.

    Nobody leads. Each rank looks at the list of the step every second, and deals the missing shares of ranks that have
    ended to the ranks whose shares are stored, by number. So all deal alike, and two that do the same do no harm.

    Args:
        job: The ranks of the job.
        run: The run, in whose store the shares are.
        pusher: Stores the shares.
        saved_steps: Copies them from the live state.
        lines: Shows what this rank does.
    """

    def __init__(self, job: Job, run: Membership, pusher: Pusher, saved_steps: SavedSteps, lines: Lines) -> None:
        self._job = job
        self._run = run
        self._pusher = pusher
        self._saved_steps = saved_steps
        self._lines = lines
        self._ended: set[int] = set()
        self._num_lost = 0
        self.is_first = job.rank == 0
        """True if this rank is the first one that is left."""

    def finish(self, step: int, until: Callable[[], float]) -> dict[int, str]:
        """
        Stay until the shares of all ranks of *step* are stored, or until the time is over.

        Call it after the share of this rank is stored, and only if a rank has ended.

        Args:
            step: The step that all ranks stood still after.
            until: Returns the end of the wait (monotonic), which may move.

        Returns:
            The ranks whose shares are not stored, each with the reason. Empty if the step is committed.
        """
        began = time.monotonic()
        failed: dict[int, str] = {}
        missing = dict.fromkeys(set(range(self._job.world_size)) - {self._job.rank}, TOO_LATE)
        while time.monotonic() < until():
            if (shares := self._look(step, until)) is not None:
                stored, prepared = shares
                absent = set(range(self._job.world_size)) - stored - {self._job.rank}
                left = self._left(absent)
                missing = {
                    rank: failed.get(rank) or (TOO_LATE if rank in prepared else UNPREPARED) for rank in sorted(absent)
                }
                if not missing or (left == [self._job.rank] and failed.keys() >= absent):
                    break
                turn = int((time.monotonic() - began) // TURN_S)
                mine = [rank for rank in self._dealt(absent, left, turn) if rank in prepared and rank not in failed]
                if mine:
                    if (failure := self._store_share(step, mine[0], until)) is not None:
                        failed[mine[0]] = failure
                    continue
            # wait: LOOK_S; it looks at the list of the step again, until the time of the notice is over
            time.sleep(max(0.0, min(LOOK_S, until() - time.monotonic())))
        return missing

    def _look(self, step: int, until: Callable[[], float]) -> tuple[set[int], set[int]] | None:
        """Return which shares are stored, and which are prepared. Return None if the store does not answer."""
        world_size = self._job.world_size
        with suppress(StoreError, NoThreadError):
            # wait: the deadline of the notice; this rank leaves without knowing
            done = attentively(
                lambda: self._run.shares_of(step, world_size), lambda seconds: None, lambda: time.monotonic() > until()
            )
            # wait: at once; the look has ended
            return None if done is None else done.result()
        return None

    def _left(self, absent: set[int]) -> list[int]:
        """Return the ranks that have stored their share, and have not ended as far as the board knows."""
        notes, gone = self._job.board.gather(ENDED, self._job.world_size, 0.0)
        self._ended |= notes.keys()
        if gone is not None and not notes:  # the board has ended with rank 0, so any rank may have ended
            self._ended |= {0, *absent}
        left = sorted(set(range(self._job.world_size)) - absent - self._ended | {self._job.rank})
        self.is_first = left[0] == self._job.rank
        return left

    def _dealt(self, absent: set[int], left: list[int], turn: int) -> list[int]:
        """Return the ranks whose shares this rank is to store. In each *turn* they are those of another rank."""
        # By the number of the rank, so that a share that is stored meanwhile does not change who stores the others.
        return [rank for rank in sorted(absent & self._ended) if left[(rank + turn) % len(left)] == self._job.rank]

    def _store_share(self, step: int, rank: int, until: Callable[[], float]) -> str | None:
        """Store the share of *rank*. Return the reason if that is impossible."""
        self._lines.say(f"rank {rank} has ended before its share of step {step} was stored, so this rank stores it")
        try:
            self._saved_steps.push_share(rank, until())
        except (SpotError, *NO_MEMORY) as error:
            return self._fail(step, rank, str(error) or type(error).__name__)
        outcome = None
        try:
            while outcome is None and time.monotonic() < until():
                # wait: LOOK_S, again and again until the deadline of the notice; the pusher process continues
                outcome = self._pusher.ledger.other_shares.wait(min(until(), time.monotonic() + LOOK_S))
        except LostError:
            self._num_lost += 1
            # The first time it is dealt again. Then it may be the cause.
            return None if self._num_lost < MAX_TRIES else self._fail(step, rank, "the pusher process has ended twice")
        if outcome is None:
            return TOO_LATE
        return None if isinstance(outcome, ShareFinished) else self._fail(step, rank, outcome.reason)

    def _fail(self, step: int, rank: int, reason: str) -> str:
        self._lines.say(f"this rank cannot store the share of rank {rank} of step {step}: {reason}", logging.WARNING)
        return reason
