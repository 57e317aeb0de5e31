"""
The messages and votes of the agreement, as notes on the board.

Messages are numbered over all ranks, and every rank reads all of them in the same order. What belongs to a message is
named after its number: ``answer/N/RANK``, ``verdict/N``, ``figures/N/RANK``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ..machine.threads import NoThreadError, start_thread
from ..ranks import BoardClosedError, Job, Json
from .messages import VOID, Message, decode_message, encode_message

Answer = TypeVar("Answer", bound=Json)
Verdict = TypeVar("Verdict", bound=Json)


class Mail:
    """
    The notes of one rank. All methods are safe from any thread.

    Args:
        job: The ranks and their board.
        on_lost: Called with the error if a message cannot be sent, on the thread that sends it.
    """

    def __init__(self, job: Job, on_lost: Callable[[BoardClosedError], None]) -> None:
        self._job = job
        self._on_lost = on_lost

    def send(self, message: Message) -> None:
        """Send *message* to all ranks, this one included."""
        try:
            number = self._job.board.take_number("messages")
            self._job.board.post(f"message/{number}", encode_message(message))
        except BoardClosedError as error:
            self._on_lost(error)

    def send_aside(self, message: Message) -> threading.Thread | None:
        """
        Send *message* on a thread of its own, because training must not wait for the board.

        Returns:
            The thread. None if the machine has no room for it, so that the calling thread has sent the message.
        """
        try:
            return start_thread(threading.Thread(target=self.send, args=(message,), name="spot-message", daemon=True))
        except NoThreadError:
            self.send(message)
            return None

    def read(self, number: int) -> Message:
        """
        Wait for message *number*, counted from 1.

        Raises:
            BoardClosedError: The board is lost, a rank is lost, or the message is nonsense.
        """
        return decode_message(self._job.board.read(f"message/{number}"))

    def vote(
        self,
        number: int,
        answer: Answer,
        decode_answer: Callable[[Json], Answer],
        count: Callable[[list[Answer]], Verdict],
        decode_verdict: Callable[[Json], Verdict],
    ) -> Verdict:
        """
        Give this rank's *answer* to message *number*, and wait for the verdict, which rank 0 counts.

        Raises:
            BoardClosedError: The board or a rank is lost, or a note is nonsense.
        """
        board = self._job.board
        board.post(f"answer/{number}/{self._job.rank}", answer)
        if self._job.rank == 0:
            try:
                answers = [decode_answer(note) for note in self._gather(f"answer/{number}")]
            except BoardClosedError:
                board.post(f"verdict/{number}", VOID)  # no rank waits for a verdict that never comes
                raise
            board.post(f"verdict/{number}", count(answers))
        return decode_verdict(board.read(f"verdict/{number}"))

    def post_figures(self, number: int, figures: Json) -> None:
        """Post the measurements of this rank, because of the notice in message *number*."""
        self._job.board.post(f"figures/{number}/{self._job.rank}", figures)

    def read_figures(self, number: int, timeout_s: float) -> list[Json]:
        """
        Return the measurements of all ranks, in rank order.

        Raises:
            BoardClosedError: One did not come within *timeout_s*, or the board or a rank is lost.
        """
        return self._gather(f"figures/{number}", timeout_s)

    def _gather(self, name: str, timeout_s: float | None = None) -> list[Json]:
        notes, missing = self._job.board.gather(name, self._job.world_size, timeout_s)
        if missing is not None:
            raise missing
        return [notes[rank] for rank in range(self._job.world_size)]
