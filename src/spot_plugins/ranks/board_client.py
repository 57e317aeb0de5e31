"""
The board as each rank uses it: one connection to rank 0, and one thread that reads answers and sends beats.

The thread ``spot-board`` calls nothing but sockets, like that of :mod:`.board_server`.
"""

from __future__ import annotations

import itertools
import logging
import selectors
import socket
import threading
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from random import SystemRandom
from typing import Any, Final, TypeVar

from ..format.manifest import Json
from ..machine.threads import start_thread
from .base import BoardClosedError, LeftOnNoticeError, RankLostError
from .board_server import CLOSED, BoardServer
from .frames import (
    BEAT,
    MAX_ANSWER_BYTES,
    MAX_NOTE_BYTES,
    AwakeClock,
    FrameError,
    FrameReader,
    Limits,
    frame_of,
    keep,
    prepare,
)
from .notes import LEFT_ON_NOTICE, Answered, NoteBoard

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_BOTH: Final = selectors.EVENT_READ | selectors.EVENT_WRITE


def connect(host: str, port: int, secret: str, rank: int, limits: Limits) -> socket.socket:
    """
    Connect to rank 0, and return the connection when rank 0 has let this rank in.

    Raises:
        OSError: Rank 0 cannot be reached, or what answers is not rank 0.
    """
    # wait: connect_s; the caller raises an error
    sock = socket.create_connection((host, port), timeout=limits.connect_s)
    try:
        # wait: connect_s; the caller raises an error
        sock.sendall(frame_of(secret, rank))
        # wait: connect_s; the caller raises an error
        if sock.recv(len(BEAT), socket.MSG_WAITALL) != BEAT:
            raise ConnectionAbortedError("something else than rank 0 answers there, or closes the connection")
    except BaseException:
        sock.close()
        raise
    return sock


class SocketBoard(NoteBoard):
    """
    A board whose notes are on rank 0.

    Args:
        sock: The connection to rank 0.
        limits: The times of the board.
        server: On rank 0, the server, which ends with this board.
    """

    def __init__(self, sock: socket.socket, limits: Limits, server: BoardServer | None = None) -> None:
        self._sock = prepare(sock)
        self._limits = limits
        self._server = server
        self._lock = threading.Lock()  # around all that follows
        self._loss: BoardClosedError | None = None
        self._out = bytearray()
        self._asked: dict[int, tuple[Callable[[list[Any]], None], Callable[[BaseException], None]]] = {}
        self._numbers = itertools.count()
        self._waker, self._wakened = map(keep, socket.socketpair())
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="spot-board", daemon=True)
        start_thread(self._thread)

    def post(self, name: str, value: Json) -> None:
        """See :class:`~.base.Board`."""
        frame = frame_of("post", name, value)
        if len(frame) > MAX_NOTE_BYTES:
            raise BoardClosedError(f"the note {name!r} has {len(frame)} bytes, and {MAX_NOTE_BYTES} are the most")
        with self._lock:
            self._send(frame)

    def take_number(self, name: str) -> int:
        """See :class:`~.base.Board`."""
        # wait: until rank 0 answers, or is lost after silent_s; the caller gets an error
        return self._request(int, "number", name).result()

    def close(self) -> None:
        """Say farewell, and wait a little until rank 0 has read it. On rank 0, end the board."""
        with suppress(BoardClosedError), self._lock:
            self._send(frame_of("bye"))
        # wait: farewell_s; the connection is closed all the same
        self._thread.join(self._limits.farewell_s)
        self._lose(BoardClosedError("the board was closed"))
        if self._server is not None:
            self._server.close()

    def _ask(self, name: str, num_ranks: int | None, *, waits: bool) -> futures.Future[Answered]:
        return self._request(_answered, "ask", name, num_ranks, waits)

    def _request(self, decode: Callable[..., _T], kind: str, *values: Json) -> futures.Future[_T]:
        """Send a request. The future gets what *decode* makes of the answer, or an error once the board is lost."""
        asked: futures.Future[_T] = futures.Future()
        with self._lock:
            number = next(self._numbers)
            self._send(frame_of(kind, number, *values))
            self._asked[number] = lambda answer: asked.set_result(decode(*answer)), asked.set_exception
        return asked

    def _send(self, frame: bytes) -> None:
        """Send *frame*. What the kernel does not take now is left to the thread. Call with the lock held."""
        if self._loss is not None:
            raise type(self._loss)(*self._loss.args)
        if not self._is_sent(frame):
            self._wake()

    def _is_sent(self, data: bytes = b"") -> bool:
        self._out += data
        with suppress(OSError):  # not now, or the thread learns why
            del self._out[: self._sock.send(self._out)]
        return not self._out

    def _wake(self) -> None:
        with suppress(OSError):  # the thread has ended, or is about to wake up
            self._waker.send(b"\0")

    def _lose(self, loss: BoardClosedError) -> None:
        with self._lock:
            self._loss = loss
            asked, self._asked = self._asked, {}
        self._wake()
        for _, fail in asked.values():
            fail(type(loss)(*loss.args))

    # The thread.

    def _run(self) -> None:
        try:
            loss = self._listen()
        except FrameError as error:
            loss = BoardClosedError(f"rank 0 sends what is no frame of the board: {error}")
        except ConnectionError:
            loss = RankLostError(0, CLOSED)
        except OSError as error:
            loss = RankLostError(0, f"cannot be reached any more ({error.strerror})")
        except Exception as error:
            logger.exception("the board of this rank ends, which is a bug")
            loss = BoardClosedError(repr(error))
        if loss is not None:
            self._lose(loss)
        for sock in (self._sock, self._waker, self._wakened):
            sock.close()

    def _listen(self) -> BoardClosedError | None:
        """Read answers and send beats. Return the reason why the board is lost, or None after :meth:`close`."""
        clock, reader = AwakeClock(), FrameReader(MAX_ANSWER_BYTES)
        heard_at = now = clock.now()
        beat_at = now + self._limits.beat_s * SystemRandom().random()  # so that the ranks do not all beat at once
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakened, selectors.EVENT_READ)
            selector.register(self._sock, selectors.EVENT_READ)
            while self._loss is None:
                is_due = now >= beat_at
                beat_at = now + self._limits.beat_s if is_due else beat_at
                with self._lock:
                    is_sent = self._is_sent(BEAT if is_due else b"")
                selector.modify(self._sock, selectors.EVENT_READ if is_sent else _BOTH)
                # wait: tick_s; it looks whether rank 0 is silent
                ready = {key.fileobj for key, _ in selector.select(self._limits.tick_s)}
                now = clock.now()
                if self._wakened in ready:
                    # wait: at once; a byte was sent
                    self._wakened.recv(64)
                if self._sock in ready:
                    heard_at, goes_on = now, reader.receive(self._sock)
                    for frame in reader.frames():
                        if frame is not None and (loss := self._on_frame(frame)) is not None:
                            return loss
                    if not goes_on:
                        return RankLostError(0, CLOSED)
                if now - heard_at > self._limits.silent_s:
                    return RankLostError(0, f"has not been heard from for {self._limits.silent_s:g} s")
        return None

    def _on_frame(self, frame: list[Any]) -> BoardClosedError | None:
        match frame:
            case ["end", str(reason)]:
                return LeftOnNoticeError(0, reason) if reason == LEFT_ON_NOTICE else BoardClosedError(reason)
            case [int(number), *answer]:
                with self._lock:
                    asked = self._asked.pop(number, None)
                if asked is not None:
                    try:
                        asked[0](answer)
                    except (TypeError, ValueError) as error:
                        asked[1](BoardClosedError(repr(error)))
                        raise FrameError(f"a frame that is not known: {error}") from error
                return None
        raise FrameError(f"a frame that is not known: {str(frame)[:80]}")


def _answered(ranks: list[int], notes: list[Json], ended: list[Any] | None) -> Answered:
    return Answered(dict(zip(ranks, notes, strict=True)), None if ended is None else (int(ended[0]), str(ended[1])))
