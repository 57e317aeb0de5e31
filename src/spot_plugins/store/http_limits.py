"""Time limits of all clients that send HTTP requests, and sessions of aiohttp that keep them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 15.0
"""Seconds in which no byte moves, after which a request is given up."""

LARGEST_OBJECT_BYTES: Final = 5 * 1024**3
"""Objects up to this size travel in one request. It is the limit of S3."""

_UNSENT_BYTES: Final = 128 * 1024  # unsent bytes that the kernel may hold

_Address: TypeAlias = "tuple[int, int, int, str, tuple[Any, ...]]"


def limits(options: Mapping[str, Any], connect: str, read: str) -> tuple[float | None, float | None]:
    """
    Return the connect timeout and the read timeout in seconds, from the *options* of these names or by default.

    None stands for no limit.
    """
    return options.get(connect, CONNECT_TIMEOUT_S), options.get(read, READ_TIMEOUT_S)


def socket_factory(stall_s: float) -> Callable[[_Address], socket.socket]:
    """
    Return a function that makes sockets for aiohttp. A socket fails if the peer takes no bytes for *stall_s* seconds.

    This is needed because aiohttp's read timeout begins when the last byte of a request is handed to the kernel. If a
    server stops reading in the middle of a body, the timeout never begins. If a server is slow, the timeout begins
    while megabytes are still unsent.
    """

    def make(address: _Address) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        # Half the time, because the kernel checks only when it probes the peer, and doubles the time between probes.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(stall_s * 1000 / 2))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        return made

    return make


def prepare_session(session: Any, stall_s: float | None) -> None:
    """
    Let *session*, a new session of aiohttp, send each request once, over sockets of :func:`socket_factory`.

    By default aiohttp repeats a request whose connection breaks before the answer. If it is a conditional put, the
    second one finds the object of the first, and reports that another writer has won.
    """
    session._retry_connection = False
    if stall_s is not None:
        # Only the constructor of a connector takes it, and gcsfs and azure-core call the constructor themselves.
        session.connector._socket_factory = socket_factory(stall_s)
