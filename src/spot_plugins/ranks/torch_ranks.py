"""The processes of :mod:`torch.distributed`, and a board on a store of their own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from ..errors import ConfigError
from ..format.manifest import Json
from .base import Board, BoardClosedError, BoardNonsenseError, Ranks
from .single import SingleRank

SLICE_S: Final = 3600.0  # c10d warns on stderr when a wait on its store times out, so endless waits are long ones
CONNECT_S: Final = 30.0  # longest wait for a connection to the board: rank 0 may have much to do when a job starts
BACKLOG: Final = 4096  # ranks that connect at once
FAREWELL_S: Final = 2.0  # longest wait of rank 0 for the others to let go of the board


class TorchRanks:
    """The processes of the default group of :mod:`torch.distributed`, which must be initialized."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def open_board(self) -> Board:
        """Serve the board on rank 0, and connect to it. Takes two collectives, on a gloo group of its own."""
        group = dist.new_group(backend="gloo")
        # Each rank finds this board under the address that its own rendezvous uses for rank 0. The address may differ
        # between ranks: some schedulers give rank 0 itself "localhost".
        hosts: list[str | None] = [None] * self.world_size
        dist.all_gather_object(hosts, os.environ.get("MASTER_ADDR"), group=group)
        server = _serve(hosts) if self.rank == 0 else None
        address: list[object] = [None if server is None else [socket.gethostname(), server.port]]
        # The group stays, because closing it here could cut off a rank that has not read the address yet.
        dist.broadcast_object_list(address, src=0, group=group)
        assert isinstance(address[0], list)
        name, port = address[0]
        return StoreBoard(self.rank, self.world_size, hosts[self.rank] or name, port, server)


def _serve(hosts: list[str | None]) -> TCPStore:
    """Serve a store at the address of rank 0 in *hosts*, which has the address that each rank uses."""
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
    """Listen on the one address that all ranks use, if there is one, so that a job on 127.0.0.1 opens no other port."""
    if hosts[0] and len(set(hosts)) == 1:
        family, _, _, _, address = socket.getaddrinfo(hosts[0], 0, type=socket.SOCK_STREAM)[0]
        with contextlib.suppress(OSError):  # nobody can listen on the address of a gateway, for example
            return socket.create_server((str(address[0]), 0), family=family, backlog=BACKLOG)
    return socket.create_server(("", 0), backlog=BACKLOG)


class StoreBoard:
    """A board on a TCPStore. Each call has a connection of its own, so that a call that waits holds up no other."""

    def __init__(self, rank: int, world_size: int, host: str, port: int, server: TCPStore | None) -> None:
        """
        Connect to rank 0, which alone has the *server*.

        Raises:
            ConfigError: Rank 0 cannot be reached.
        """
        self._rank = rank
        self._world_size = world_size
        self._host = host
        self._port = port
        self._server = server
        self._loss = ""
        try:
            # Kept, because the most important call comes when the job ends, and rank 0 may take no connections then.
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
            text = client.get(name)
        try:
            value: Json = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BoardNonsenseError(f"the note {name!r} is not JSON: {error}") from error
        return value

    def take_number(self, name: str) -> int:
        """See :class:`Board`."""
        with self._connection() as client:
            return int(client.add(name, 1))

    def close(self) -> None:
        """
        Let go of the board. Rank 0 does so last, unless it would have to wait long for the others.

        If the server goes away while a rank waits for a note, c10d prints the error there, with a C++ traceback.
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
        """Lend an idle connection, or a new one. After one has failed, rank 0 is gone, and all calls fail."""
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
        client.wait([name], timedelta(seconds=max(timeout_s, 0.001)))  # 0 would be no limit
    except dist.DistStoreError:
        return False
    return True


def current_ranks() -> Ranks:
    """Return the ranks of this job: the processes of torch.distributed if there are several, else a single rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return TorchRanks()
    return SingleRank()
