"""
The board on rank 0: one thread that keeps the notes of all ranks, and finds out which ranks have ended.

The thread ``spot-board-server`` calls nothing but sockets. A daemon thread in a call of torch would abort the process
if the interpreter ends meanwhile.
"""

from __future__ import annotations

import hmac
import json
import logging
import selectors
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from ..machine.threads import start_thread
from .frames import (
    BEAT,
    MAX_HELLO_BYTES,
    MAX_NOTE_BYTES,
    AwakeClock,
    FrameError,
    FrameReader,
    Limits,
    frame_of,
    framed,
    keep,
    prepare,
)
from .notes import LEFT, LEFT_ON_NOTICE, Found, Notes, Question

logger = logging.getLogger(__name__)

CLOSED: Final = "has ended (its connection was closed)"
"""The end of a process that said no farewell."""

MAX_STRANGERS: Final = 64
"""Connections beside one for each rank that may be open before they have given the secret."""


@dataclass(slots=True, eq=False)
class Connection:
    """One connection, of a rank or of a stranger."""

    sock: socket.socket
    heard_at: float
    reader: FrameReader = field(default_factory=lambda: FrameReader(MAX_HELLO_BYTES))
    rank: int | None = None
    """The rank. None until the secret has come."""
    is_open: bool = True
    _out: bytearray = field(default_factory=bytearray)

    def send(self, data: bytes = b"") -> bool:
        """Send *data* after what has not been sent yet, as far as that goes at once. Return whether all is sent."""
        self._out += data
        try:
            sent = self.sock.send(self._out)
        except OSError:  # not now, or its reader will learn why
            sent = 0
        del self._out[:sent]
        return not self._out


class BoardServer:
    """
    Serves a board to all ranks. It listens until all ranks are connected.

    Args:
        listener: The socket to which the ranks connect.
        world_size: The number of ranks.
        secret: The word that a rank knows and a stranger does not.
        limits: The times of the board.
    """

    def __init__(self, listener: socket.socket, world_size: int, secret: str, limits: Limits) -> None:
        self._listener = keep(listener)
        self._secret = secret
        self._limits = limits
        self._notes = Notes()
        self._connections: dict[Connection, None] = {}  # in the order in which they came
        self._missing = set(range(1, world_size))  # the ranks that have not connected yet
        self._clock = AwakeClock()
        self._waker, wakened = map(keep, socket.socketpair())
        self._closing = False
        self._encoded: tuple[Found, bytes] | None = None  # the last answer, which all ranks get in an exchange
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(wakened, selectors.EVENT_READ)
        listener.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="spot-board-server", daemon=True)

    def open(self) -> socket.socket:
        """Start to serve. Return the connection of rank 0, which needs no network."""
        ours, theirs = socket.socketpair()
        connection = self._add(ours)
        connection.rank, connection.reader.max_bytes = 0, MAX_NOTE_BYTES
        start_thread(self._thread)
        return theirs

    def close(self) -> None:
        """End the board, as soon as the other ranks have come and said farewell, or after ``farewell_s``."""
        self._closing = True
        with suppress(OSError):  # the thread has ended
            self._waker.send(b"\0")
        # wait: farewell_s twice; the thread is left behind, and ends with the process
        self._thread.join(2 * self._limits.farewell_s)

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:  # the ranks learn that the board is lost when their connections close
            logger.exception("the board of the ranks ends, which is a bug")
        finally:
            told = LEFT_ON_NOTICE if self._notes.has_early_end else "rank 0 has left, and the board with it"
            for connection in list(self._connections):
                self._close(connection, told)
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            self._selector.close()
            self._waker.close()

    def _serve(self) -> None:
        closed_by: float | None = None
        look_at = self._clock.now()
        connected_by = look_at + self._limits.connect_s
        while closed_by is None or ((self._connections or self._missing) and self._clock.now() < closed_by):
            # wait: tick_s; it looks for ranks that are silent
            ready = self._selector.select(self._limits.tick_s)
            now = self._clock.now()
            for key, mask in ready:
                if isinstance(key.data, Connection):
                    self._on_ready(key.data, mask, now)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    # wait: at once; close() has sent a byte
                    key.fileobj.recv(1)  # type: ignore[union-attr]
            if self._closing and closed_by is None:
                closed_by = now + self._limits.farewell_s
            if now >= look_at:  # not each time, because that would cost more than the beats of 1,024 ranks
                look_at = now + self._limits.tick_s
                self._end_silent(now)
            if now > connected_by:
                for rank in sorted(self._missing):
                    self._notes.end(rank, f"has not connected within {self._limits.connect_s:g} s", is_lost=True)
                self._missing.clear()
            if not self._missing and self._listener.fileno() >= 0:
                self._selector.unregister(self._listener)
                self._listener.close()
                for connection in self._strangers():
                    self._close(connection)

    def _strangers(self) -> list[Connection]:
        return [connection for connection in self._connections if connection.rank is None]

    def _accept(self) -> None:
        try:
            # wait: at once; the socket does not block
            sock, _ = self._listener.accept()
        except OSError:  # the stranger has gone, or there is no file descriptor left until one ends
            return
        self._add(sock)
        if len(strangers := self._strangers()) > MAX_STRANGERS + len(self._missing):
            self._close(strangers[0])  # not the newest one, which may be a rank

    def _add(self, sock: socket.socket) -> Connection:
        connection = Connection(prepare(sock), self._clock.now())
        self._connections[connection] = None
        self._selector.register(sock, selectors.EVENT_READ, connection)
        return connection

    def _on_ready(self, connection: Connection, mask: int, now: float) -> None:
        if not connection.is_open:  # closed in this round
            return
        try:
            if mask & selectors.EVENT_WRITE:
                self._send(connection)
            if mask & selectors.EVENT_READ:
                goes_on = connection.reader.receive(connection.sock)
                connection.heard_at = now if connection.rank is not None else connection.heard_at
                for frame in connection.reader.frames():
                    self._on_frame(connection, frame)
                if not goes_on:
                    self._lose(connection, CLOSED)
        except FrameError as error:
            self._lose(connection, f"is cut off, because it sends what is no frame of the board: {error}")
        except ConnectionError:
            self._lose(connection, CLOSED)
        except OSError as error:
            self._lose(connection, f"cannot be reached any more ({error.strerror})")

    def _on_frame(self, connection: Connection, frame: list[Any] | None) -> None:
        match frame:
            case [str(secret), int(rank)] if connection.rank is None:
                self._let_in(connection, secret, rank)
            case _ if connection.rank is None:
                raise FrameError("no secret")
            case None:
                self._send(connection, BEAT)
            case ["post", str(name), value]:
                self._notes.post(name, json.dumps(value))
            case ["number", int(number), str(name)]:
                self._send(connection, frame_of(number, self._notes.take_number(name)))
            case ["ask", int(number), str(name), int() | None as num_ranks, bool(waits)]:

                def answer(found: Found) -> None:
                    self._send(connection, framed(f"[{number},".encode() + self._encode(found)))

                self._notes.ask(Question(name, num_ranks, answer), waits=waits)
            case ["bye"]:
                assert connection.rank is not None
                self._close(connection, LEFT)
                self._notes.end(connection.rank, LEFT, is_lost=False)
            case _:
                raise FrameError(f"a frame that is not known: {str(frame)[:80]}")

    def _encode(self, found: Found) -> bytes:
        """Return the answer *found* without its beginning, the number of the question."""
        if self._encoded is None or self._encoded[0] is not found:
            ranks, ended = json.dumps(list(found.texts)), json.dumps(found.ended)
            self._encoded = found, f"{ranks},[{','.join(found.texts.values())}],{ended}]".encode()
        return self._encoded[1]

    def _let_in(self, connection: Connection, secret: str, rank: int) -> None:
        if not hmac.compare_digest(secret.encode(), self._secret.encode()) or rank not in self._missing:
            raise FrameError("a wrong secret")
        self._missing.remove(rank)
        connection.rank, connection.reader.max_bytes = rank, MAX_NOTE_BYTES
        self._send(connection, BEAT)

    def _send(self, connection: Connection, data: bytes = b"") -> None:
        if connection.is_open:
            is_sent = connection.send(data)
            events = selectors.EVENT_READ if is_sent else selectors.EVENT_READ | selectors.EVENT_WRITE
            if self._selector.get_key(connection.sock).events != events:
                self._selector.modify(connection.sock, events, connection)

    def _end_silent(self, now: float) -> None:
        for connection in list(self._connections):
            limit_s = self._limits.connect_s if connection.rank is None else self._limits.silent_s
            if now - connection.heard_at > limit_s:
                told = f"has not been heard from for {limit_s:g} s"
                self._lose(connection, told, f"the other ranks have given this rank up, because it {told}")

    def _lose(self, connection: Connection, how: str, told: str = "") -> None:
        if connection.is_open:
            self._close(connection, told)
            if connection.rank is not None:
                self._notes.end(connection.rank, how, is_lost=True)

    def _close(self, connection: Connection, told: str = "") -> None:
        """Close *connection*, after the rank is *told* why."""
        if told and connection.rank is not None:
            connection.send(frame_of("end", told))
        connection.is_open = False
        del self._connections[connection]
        self._selector.unregister(connection.sock)
        connection.sock.close()
