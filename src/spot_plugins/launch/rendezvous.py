"""The rendezvous at which the agents of torchrun agree, and whether it still answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from ..machine.threads import NoThreadError, start_thread
from .launcher import value_of

LOST_S: Final = 60.0
"""Seconds without a running rank and without an answer after which the rendezvous counts as lost."""

PROBE_S: Final = 5.0
"""Longest wait for an answer in seconds, and the time from one try to the next."""

FLAGS: Final = ("--rdzv-endpoint", "--rdzv_endpoint")
VARIABLE: Final = "PET_RDZV_ENDPOINT"
DEFAULT_PORT: Final = 29400


def endpoint_of(command: Sequence[str], environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Return host and port of the rendezvous of *command*, or None if it is no torchrun with a fixed endpoint."""
    given = [value_of(command, index) for index, word in enumerate(command) if word.partition("=")[0] in FLAGS]
    host, has_port, port = (given[0] if given else environ.get(VARIABLE, "")).rpartition(":")
    if not has_port:
        host, port = port, str(DEFAULT_PORT)
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return None
    return host.strip("[]"), int(port)


class Rendezvous:
    """
    Finds out that the rendezvous is lost.

    An agent whose rendezvous vanished without a reset waits in a call of C without a limit, until the kernel gives its
    connection up after a quarter of an hour. It needs the rendezvous only while no ranks run, so nobody asks before.

    Args:
        endpoint: Host and port. None: it is never lost.
    """

    def __init__(self, endpoint: tuple[str, int] | None) -> None:
        self._endpoint = endpoint
        self._seen_at = time.monotonic()
        self._next_at = 0.0

    @property
    def name(self) -> str:
        """Host and port."""
        assert self._endpoint is not None
        return f"{self._endpoint[0]}:{self._endpoint[1]}"

    def is_lost(self, *, has_ranks: bool) -> bool:
        """Return whether the rendezvous has not answered for :data:`LOST_S`. Call it again and again."""
        now = time.monotonic()
        if self._endpoint is None or has_ranks:
            self._seen_at = now
        elif now >= self._next_at:
            self._next_at = now + PROBE_S
            probe = threading.Thread(target=self._probe, args=(self._endpoint,), name="spot-probe", daemon=True)
            try:
                start_thread(probe)
            except NoThreadError:  # this machine is the sick one
                self._seen_at = now
        return now - self._seen_at > LOST_S

    def _probe(self, endpoint: tuple[str, int]) -> None:
        try:
            # wait: PROBE_S, and as long as the name service takes; the rendezvous has not answered
            socket.create_connection(endpoint, PROBE_S).close()
        except OSError:
            return
        self._seen_at = time.monotonic()
