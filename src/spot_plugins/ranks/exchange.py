"""The job: its ranks, the board that they share, and the two things that all ranks do together over the board."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from ..errors import Preempted
from ..format.manifest import Json
from ..machine.threads import NoThreadError, start_thread
from ..store import attentively
from .base import Board, BoardClosedError, LeftOnNoticeError, RankLostError, Ranks
from .notes import EARLY_END

EXCHANGE_S: Final = 6 * 3600.0  # longest wait for the other ranks, one of which may read hundreds of GB before
MEETING_MARGIN_S: Final = 0.5  # seconds that the thread that waits for the others has after the deadline


@dataclass(frozen=True, slots=True)
class Job:
    """This process among the ranks of its job, with the board that they share."""

    ranks: Ranks
    board: Board
    wait: Callable[[float], None] = lambda seconds: None
    """Waits for a number of seconds. It raises if there is a notice and training has not begun."""
    _num_uses: Counter[str] = field(default_factory=Counter)

    @property
    def rank(self) -> int:
        """Number of this process, counted from 0."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.ranks.world_size

    def exchange(self, name: str, value: Json, limit_s: float | None = None) -> list[Json]:
        """
        Give *value* to all ranks, and return the values of all ranks in rank order. A notice ends the wait for them.

        Every rank makes the same calls in the same order. A name may be used again, because each use has notes of its
        own.

        Args:
            name: The name of the exchange.
            value: The value of this rank.
            limit_s: Longest wait for the other ranks. None: :data:`EXCHANGE_S`.

        Raises:
            Preempted: A rank has called :meth:`leave_early`, and left.
            RankLostError: A rank has ended before it called this, or is silent.
            BoardClosedError: The board is lost or does not answer, or a rank does not call this in time.
        """
        self._num_uses[name] += 1
        number = self._num_uses[name]
        notes = name if number == 1 else f"{name} ({number})"
        deadline = time.monotonic() + (EXCHANGE_S if limit_s is None else limit_s)

        def give_and_take() -> list[Json]:
            self.board.post(f"{notes}/{self.rank}", value)
            given, missing = self.board.gather(notes, self.world_size, max(0.0, deadline - time.monotonic()))
            if isinstance(missing, RankLostError) and not isinstance(missing, LeftOnNoticeError):
                text = f"{missing.how}, so this rank cannot continue and ends, too. Look at the log of that rank"
                raise RankLostError(missing.rank, text)
            if missing is not None:
                raise missing
            return [given[rank] for rank in range(self.world_size)]

        if self.world_size == 1:
            return give_and_take()
        # wait: EXCHANGE_S, or limit_s of the caller; the caller gets an error
        done = attentively(give_and_take, self.wait, lambda: time.monotonic() > deadline + MEETING_MARGIN_S)
        if done is None:
            raise BoardClosedError(f"the board of rank 0 has not answered in the exchange of {name!r}")
        try:
            # wait: at once; the exchange has ended
            return done.result()
        except LeftOnNoticeError:
            raise Preempted(None) from None

    def leave_early(self) -> None:
        """Let the exchanges of the other ranks raise ``Preempted``. This rank leaves for a notice before training."""
        with suppress(BoardClosedError):
            self.board.post(EARLY_END, True)

    def meet(self, deadline: float, note: Json = None) -> Meeting:
        """
        Meet all ranks at the end of the job. Every rank calls this once. It returns at once.

        It is needed because launchers kill all other ranks as soon as one process has left.

        Args:
            deadline: The end of the meeting (monotonic), if not all ranks come.
            note: Given to the other ranks.
        """
        return Meeting(self, deadline, note)


class Meeting:
    """The wait for all ranks to come to their end, on a thread. It ends when one is lost. See :meth:`Job.meet`."""

    def __init__(self, job: Job, deadline: float, note: Json) -> None:
        self.notes: dict[int, Json] = {job.rank: note}
        """The notes of the ranks that have come, this one included."""
        self.is_cut_off = False
        """True if rank 0 has ended before the deadline, and the board with it."""
        self.lost: RankLostError | None = None
        """The rank because of which not all ranks come, if one has ended before it came."""
        self._deadline = deadline
        # On a thread, because the caller has other things to wait for meanwhile.
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, args=(job, note), name="spot-end", daemon=True
        )
        try:
            start_thread(self._thread)
        except NoThreadError:  # then one after the other, because a rank that does not come to its end holds up all
            self._thread = None
            self._run(job, note)

    @property
    def is_over(self) -> bool:
        """True if all ranks have come, or the deadline has passed."""
        if self._thread is None or not self._thread.is_alive():
            return True
        return time.monotonic() > self._deadline + MEETING_MARGIN_S

    def wait(self) -> None:
        """Wait for the end of the meeting."""
        if self._thread is not None:
            # wait: the deadline of the caller and MEETING_MARGIN_S; this rank leaves without the others
            self._thread.join(max(0.0, self._deadline - time.monotonic()) + MEETING_MARGIN_S)

    def _run(self, job: Job, note: Json) -> None:
        try:
            job.board.post(f"left/{job.rank}", note)
        except BoardClosedError:
            self.is_cut_off = True
            return
        notes, missing = job.board.gather("left", job.world_size, max(0.0, self._deadline - time.monotonic()))
        self.notes.update(notes)
        if isinstance(missing, RankLostError) and missing.rank != 0:
            self.lost = missing
        elif missing is not None:
            self.is_cut_off = time.monotonic() < self._deadline


def texts_of_ranks(texts: Sequence[str | None]) -> str:
    """Return the *texts* of all ranks as one, each once, with the ranks that gave it if others gave another or None."""
    ranks_of: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        if text is not None:
            ranks_of.setdefault(text, []).append(rank)
    return "; ".join(
        text if len(ranks) == len(texts) else f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}: {text}"
        for text, ranks in ranks_of.items()
    )
