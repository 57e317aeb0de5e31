"""The processes of :mod:`torch.distributed`, and a board on a store of their own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from ..errors import ConfigError
from ..format.manifest import Json
from . import listening
from .base import Board, BoardClosedError, BoardNonsenseError, Ranks
from .single import SingleRank

logger = logging.getLogger(__name__)

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
        # wait: until the timeout of the process group, in torch; the collective fails and the training does not start
        group = dist.new_group(backend="gloo")
        # Ranks may spell the address of rank 0 differently, and resolve it differently: some schedulers give rank 0
        # itself "localhost", and some machines know their own name as 127.0.1.1.
        spelled = os.environ.get("MASTER_ADDR")
        found: list[Any] = [None] * self.world_size
        # wait: until the timeout of the process group, in torch; the collective fails and the training does not start
        dist.all_gather_object(found, (spelled, listening.addresses_of(spelled)), group=group)
        server, where = _serve(found) if self.rank == 0 else (None, None)
        box: list[Any] = [where]
        # The group stays, because closing it here could cut off a rank that has not read the address yet.
        # wait: until the timeout of the process group, in torch; the collective fails and the training does not start
        dist.broadcast_object_list(box, src=0, group=group)
        if isinstance(box[0], str):
            raise ConfigError(box[0])
        host, port, has_the_address = box[0]
        return StoreBoard(self.rank, self.world_size, host if has_the_address else spelled or host, port, server)


def _serve(found: list[tuple[str | None, list[str]]]) -> tuple[TCPStore | None, tuple[str, int, bool] | str]:
    """
    Serve a store on rank 0.

    Args:
        found: The address of rank 0 as each rank spells it, and what that resolves to on the rank.

    Returns:
        The store, and where it listens: address, port, and whether the ranks connect to this very address. If nothing
        can listen, None and the reason, for all ranks.
    """
    try:
        listener, has_the_address = listening.listen(found, BACKLOG)
    except OSError as error:
        return None, (
            f"rank 0 cannot listen on any address that the ranks have for it, {found}: {error}. Set MASTER_ADDR to an "
            f"address of the machine of rank 0"
        )
    host, port, *_ = listener.getsockname()
    logger.info("the ranks agree over a port of rank 0: it listens on %s, port %d", host, port)
    server = TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=CONNECT_S),
        master_listen_fd=listener.detach(),
    )
    return server, (host, port, has_the_address)


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
        # wait: timeout_s of the caller, else slices of SLICE_S until rank 0 ends; the board is lost
        client.wait([name], timedelta(seconds=max(timeout_s, 0.001)))  # 0 would be no limit
    except dist.DistStoreError:
        return False
    return True


def current_ranks() -> Ranks:
    """Return the ranks of this job: the processes of torch.distributed if there are several, else a single rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return TorchRanks()
    return SingleRank()
