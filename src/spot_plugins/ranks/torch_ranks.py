"""The processes of :mod:`torch.distributed`, and the way in which they find their board."""

from __future__ import annotations

import logging
import os
from secrets import token_hex
from typing import Any, Final

import torch.distributed as dist

from ..errors import ConfigError
from . import listening
from .base import Board, Ranks
from .board_client import SocketBoard, connect
from .board_server import BoardServer
from .frames import Limits
from .single import SingleRank

logger = logging.getLogger(__name__)

BACKLOG: Final = 4096  # ranks that connect at once

LIMITS = Limits()
"""The times of the board."""


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
        server, where = self._serve(found) if self.rank == 0 else (None, None)
        box: list[Any] = [where]
        # The group stays, because closing it here could cut off a rank that has not read the address yet.
        # wait: until the timeout of the process group, in torch; the collective fails and the training does not start
        dist.broadcast_object_list(box, src=0, group=group)
        if isinstance(box[0], str):
            raise ConfigError(box[0])
        if server is not None:
            return SocketBoard(server.open(), LIMITS, server)
        host, port, has_the_address, secret = box[0]
        host = host if has_the_address else spelled or host
        try:
            # wait: connect_s for each of two answers; the error names the address
            return SocketBoard(connect(host, port, secret, self.rank, LIMITS), LIMITS)
        except OSError as error:
            raise ConfigError(
                f"rank 0 cannot be reached at {host!r}, port {port}: {error}. The ranks of a job agree over a port of "
                f"their own; let the job's machines connect to each other"
            ) from error

    def _serve(
        self, found: list[tuple[str | None, list[str]]]
    ) -> tuple[BoardServer | None, tuple[str, int, bool, str] | str]:
        """
        Make the server of the board on rank 0, which listens already.

        Args:
            found: The address of rank 0 as each rank spells it, and what that resolves to on the rank.

        Returns:
            The server, and where it listens: address, port, whether the ranks connect to this very address, and the
            secret. If nothing can listen, None and the reason, for all ranks.
        """
        try:
            listener, has_the_address = listening.listen(found, BACKLOG)
        except OSError as error:
            return None, (
                f"rank 0 cannot listen on any address that the ranks have for it, {found}: {error}. Set MASTER_ADDR to "
                f"an address of the machine of rank 0"
            )
        host, port, *_ = listener.getsockname()
        logger.info("the ranks agree over a port of rank 0: it listens on %s, port %d", host, port)
        secret = token_hex(16)
        return BoardServer(listener, self.world_size, secret, LIMITS), (host, port, has_the_address, secret)


def current_ranks() -> Ranks:
    """Return the ranks of this job: the processes of torch.distributed if there are several, else a single rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return TorchRanks()
    return SingleRank()
