"""The one address on which rank 0 serves the board, so that the port is open to the network of the job alone."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

ALL_INTERFACES: Final = ("0.0.0.0", "::")
"""Addresses that rank 0 may be given to listen everywhere."""

ELSEWHERE: Final = "192.0.2.1"  # reserved for documents (RFC 5737): nothing is sent, only the route is looked up


def addresses_of(host: str | None) -> list[str]:
    """Return the IP addresses of *host*, as this machine resolves it. None if it does not."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM) if host else []
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def listen(found: list[tuple[str | None, list[str]]], backlog: int) -> tuple[socket.socket, bool]:
    """
    Listen on one address of this machine, which is that of rank 0.

    It is the address that most ranks have for rank 0, and no loopback address if a rank has another one. If a gateway
    has that address, it is the address of this machine on the way there. If rank 0 itself has ``0.0.0.0`` or ``::``,
    all interfaces are meant.

    Args:
        found: The host of rank 0 as each rank spells it, and the addresses that the rank resolves it to.
        backlog: Ranks that connect at once.

    Returns:
        The socket, and True if the ranks can connect to its address. Otherwise each uses its own spelling.

    Raises:
        OSError: No address can be listened on.
    """
    told, _ = found[0]
    if told in ALL_INTERFACES:
        return _serve(told, backlog), False
    votes = Counter(address for _, addresses in found for address in addresses)
    if not votes:
        votes.update([*addresses_of(socket.gethostname()), *_on_the_way_to(ELSEWHERE), *addresses_of("localhost")])
    wanted = sorted(votes, key=lambda address: (ip_address(address).is_loopback, -votes[address]))
    for address in wanted:
        with suppress(OSError):
            return _serve(address, backlog), True
    for address in wanted:
        for own in _on_the_way_to(address):
            return _serve(own, backlog), False
    raise OSError(f"none of {wanted} belongs to this machine")


def _serve(address: str, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, 0), family=family, backlog=backlog)


def _on_the_way_to(address: str) -> list[str]:
    """Return the address of this machine in the network that leads to *address*. None if there is no way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return [str(probe.getsockname()[0])]
    return []
