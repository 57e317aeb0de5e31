"""
Who the ranks of a job are, and a small board on which they leave each other notes.

The board is a TCPStore of our own, served by rank 0. It needs no collective and no device; only
finding it takes one collective, at the start. Its users never wait on the training thread for another
rank's *training*, only for notes of threads that are always there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Final, Protocol

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from .errors import ConfigError, SpotError
from .manifest import Json

SLICE_S: Final = 3600.0  # c10d warns on stderr when a wait on its store times out, so endless waits are long ones
CONNECT_S: Final = 30.0  # longest wait for a connection to the board: rank 0 may have much to do when a job starts
BACKLOG: Final = 4096  # ranks that connect at once
MEETING_MARGIN_S: Final = 0.5  # how much longer than until its deadline the thread that meets the others may take
FAREWELL_S: Final = 2.0  # longest wait of rank 0 for the others to let go of the board


class BoardClosedError(SpotError):
    """The rank that serves the board is gone, or this side closed it."""


class Board(Protocol):
    """
    Notes by name, seen by all ranks. A name is written once and never changes.

    Methods block the calling thread only, with Python's lock released; safe from any thread. When rank 0 is gone
    they raise; when its machine hangs or vanishes without a word, so may they: call them on a daemon thread
    where that must not happen.
    """

    def post(self, name: str, value: Json) -> None:
        """Write the note *name*. Raise :exc:`BoardClosedError` if the board is gone."""
        ...

    def read(self, name: str, timeout_s: float | None = None) -> Json:
        """
        Wait for the note *name* and return it.

        Raises:
            BoardClosedError: It did not come within *timeout_s* (None: however long it takes), or the board is gone.
        """
        ...

    def take_number(self, name: str) -> int:
        """Return 1 to the first caller, on whatever rank, 2 to the second, and so on."""
        ...

    def close(self) -> None:
        """Let go. Rank 0's closing ends the board for all."""
        ...


class Ranks(Protocol):
    """This process among the processes of the job."""

    @property
    def rank(self) -> int:
        """This process, counted from 0."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    def open_board(self) -> Board:
        """Return a board that all ranks share. Every rank calls it, once, at the start."""
        ...


def exchange(ranks: Ranks, board: Board, name: str, value: Json) -> list[Json]:
    """Give *value* to all ranks and return theirs, in rank order. Every rank calls it with the same *name*."""
    board.post(f"{name}/{ranks.rank}", value)
    return [board.read(f"{name}/{rank}") for rank in range(ranks.world_size)]


def meet(ranks: Ranks, board: Board, deadline: float) -> None:
    """
    Let all ranks come to their end, or wait until *deadline* (monotonic). Every rank calls it, once.

    Launchers kill the rest as soon as one process has left.
    """
    # A thread, because the board of a machine that vanished may hold up whoever reads it.
    meeting = threading.Thread(target=_meet, args=(ranks, board, deadline), name="spot-end", daemon=True)
    meeting.start()
    meeting.join(max(0.0, deadline - time.monotonic()) + MEETING_MARGIN_S)


def _meet(ranks: Ranks, board: Board, deadline: float) -> None:
    with contextlib.suppress(BoardClosedError):  # too late, or rank 0 is gone
        board.post(f"left/{ranks.rank}", True)
        for rank in range(ranks.world_size):
            board.read(f"left/{rank}", max(0.0, deadline - time.monotonic()))


class SingleRank:
    """A job of one process. Its board is a dictionary."""

    rank = 0
    world_size = 1

    def open_board(self) -> Board:
        """Return a board of this process alone."""
        return MemoryBoard()


class MemoryBoard:
    """A board for the threads of one process. Public, because tests run ranks as threads."""

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._closed = False
        self._changed = threading.Condition()

    def post(self, name: str, value: Json) -> None:
        """See :class:`Board`."""
        text = json.dumps(value)  # what comes back is what came through a real board
        with self._changed:
            self._check_open()
            self._notes[name] = text
            self._changed.notify_all()

    def read(self, name: str, timeout_s: float | None = None) -> Json:
        """See :class:`Board`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or name in self._notes, timeout_s):
                raise BoardClosedError(f"nobody wrote {name!r} within {timeout_s} s")
            self._check_open()
            value: Json = json.loads(self._notes[name])
            return value

    def take_number(self, name: str) -> int:
        """See :class:`Board`."""
        with self._changed:
            self._check_open()
            self._numbers[name] = self._numbers.get(name, 0) + 1
            return self._numbers[name]

    def close(self) -> None:
        """End the board for all threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise BoardClosedError("it was closed")


class TorchRanks:
    """The processes of the default group of :mod:`torch.distributed`, which must be initialized."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def open_board(self) -> Board:
        """Serve the board on rank 0 and connect to it. The one use of collectives, on a gloo group of its own."""
        group = dist.new_group(backend="gloo")
        # Where a rank's own rendezvous found rank 0, there it finds this board. It need not be the same name
        # everywhere: on rank 0 of some schedulers it is "localhost".
        hosts: list[str | None] = [None] * self.world_size
        dist.all_gather_object(hosts, os.environ.get("MASTER_ADDR"), group=group)
        server = _serve(hosts) if self.rank == 0 else None
        address: list[object] = [None if server is None else [socket.gethostname(), server.port]]
        # The group stays: closing it here could cut off a rank that has not read the answer yet.
        dist.broadcast_object_list(address, src=0, group=group)
        assert isinstance(address[0], list)
        name, port = address[0]
        return StoreBoard(self.rank, self.world_size, hosts[self.rank] or name, port, server)


def _serve(hosts: list[str | None]) -> TCPStore:
    """Serve a store where *hosts*, one for each rank, look for it."""
    listener = _listen(hosts)
    port = listener.getsockname()[1]
    return TCPStore(
        hosts[0] or socket.gethostname(),
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=CONNECT_S),
        master_listen_fd=listener.detach(),
    )


def _listen(hosts: list[str | None]) -> socket.socket:
    """Listen where all look, if that is one address: a job that is found by 127.0.0.1 opens nothing to the network."""
    if hosts[0] and len(set(hosts)) == 1:
        family, _, _, _, address = socket.getaddrinfo(hosts[0], 0, type=socket.SOCK_STREAM)[0]
        with contextlib.suppress(OSError):  # the address of a gateway, say, is not one to listen on
            return socket.create_server((str(address[0]), 0), family=family, backlog=BACKLOG)
    return socket.create_server(("", 0), backlog=BACKLOG)


class StoreBoard:
    """A board on a TCPStore. Each call has a connection to itself: one that waits holds up no other."""

    def __init__(self, rank: int, world_size: int, host: str, port: int, server: TCPStore | None) -> None:
        """
        Connect to rank 0, which alone has the *server*.

        Raises:
            ConfigError: It cannot be reached.
        """
        self._rank = rank
        self._world_size = world_size
        self._host = host
        self._port = port
        self._server = server
        self._loss = ""
        try:
            # Kept, because the call that matters most comes when the job ends: then rank 0 may take no new ones.
            self._idle = [self._connect()]
        except RuntimeError as error:
            raise ConfigError(
                f"rank 0 cannot be reached at {host!r}, port {port}: {error}. The ranks of a job agree over a port of "
                f"their own; let the job's machines connect to each other"
            ) from error

    def post(self, name: str, value: Json) -> None:
        """See :class:`Board`."""
        with self._connection() as client:
            client.set(name, json.dumps(value))

    def read(self, name: str, timeout_s: float | None = None) -> Json:
        """See :class:`Board`."""
        with self._connection() as client:
            while not _has(client, name, SLICE_S if timeout_s is None else timeout_s):
                if timeout_s is not None:
                    raise BoardClosedError(f"nobody wrote {name!r} within {timeout_s} s")
            value: Json = json.loads(client.get(name))
            return value

    def take_number(self, name: str) -> int:
        """See :class:`Board`."""
        with self._connection() as client:
            return int(client.add(name, 1))

    def close(self) -> None:
        """
        Let go. Rank 0 does so last, if it need not wait long for that.

        Whoever waits for a note when the server goes away gets an error, and c10d prints it, with a C++ traceback.
        """
        with contextlib.suppress(BoardClosedError):
            if self._server is None:
                self.post(f"closed/{self._rank}", True)
            else:
                deadline = time.monotonic() + FAREWELL_S
                for rank in range(1, self._world_size):
                    self.read(f"closed/{rank}", max(0.0, deadline - time.monotonic()))
        self._server = None
        self._idle.clear()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[TCPStore]:
        """Lend an idle connection, or a new one. After the first that fails there are no more: rank 0 is gone."""
        if self._loss:
            raise BoardClosedError(self._loss)
        try:
            try:
                client = self._idle.pop()
            except IndexError:
                client = self._connect()
            yield client
        except RuntimeError as error:
            self._loss = str(error)
            raise BoardClosedError(self._loss) from error
        self._idle.append(client)

    def _connect(self) -> TCPStore:
        return TCPStore(self._host, self._port, is_master=False, timeout=timedelta(seconds=CONNECT_S))


def _has(client: TCPStore, name: str, timeout_s: float) -> bool:
    """Wait for the note *name* for *timeout_s*. Return whether it is there."""
    try:
        client.wait([name], timedelta(seconds=max(timeout_s, 0.001)))  # 0 would be for ever
    except dist.DistStoreError:
        return False
    return True


def current_ranks() -> Ranks:
    """Return the ranks of this job: torch.distributed's if it is initialized with several, else one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return TorchRanks()
    return SingleRank()
