"""How s3fs is set up, and why its defaults do not do."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 15.0
_UNSENT_BYTES: Final = 128 * 1024  # what the kernel holds beyond what is on its way

# s3fs puts an object in one request if it is below twice the chunk size and below 5 GiB, S3's own limit.
# A multipart upload whose writer was killed stays in the bucket, unseen and paid for.
PUT_OPTIONS: Final[dict[str, Any]] = {"chunksize": 5 * 1024**3 // 2}

# s3fs reads a large object in concurrent ranges, which may come from two versions of it.
GET_OPTIONS: Final[dict[str, Any]] = {"max_concurrency": 1}

_Address: TypeAlias = "tuple[int, int, int, str, tuple[Any, ...]]"


def s3_options(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return *storage_options* with what they leave open decided: timeouts, and no retries.

    A server that hangs is given up after 20 s at most, whenever it begins to hang. What is in
    ``config_kwargs`` already, such as ``connect_timeout`` and ``read_timeout`` in seconds, stays as it is.
    """
    given = dict(storage_options.get("config_kwargs") or {})
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        # Its 5 tries, on top of the 5 of s3fs, make 25 timeouts. And a conditional put that is repeated
        # because its answer got lost finds its own object, and takes it for somebody else's.
        "retries": {"total_max_attempts": 1},
        **given,
    }
    if config["read_timeout"] is not None:
        factory = _socket_factory(config["read_timeout"])
        config["connector_args"] = {"socket_factory": factory, **config.get("connector_args", {})}
    return {**storage_options, "config_kwargs": config}


def prepare(file_system: Any) -> None:
    """Change what s3fs has no option for, before *file_system* makes its first request."""
    file_system.retries = 1  # see "retries" above
    if file_system.session is None:
        from aiobotocore.session import AioSession  # type: ignore[import-untyped]
        from botocore.handlers import add_expect_header  # type: ignore[import-untyped]

        session = AioSession(**file_system.kwargs)
        # aiohttp waits without any timeout for the "100 Continue" that this header asks for.
        session.unregister("before-call.s3", add_expect_header)
        file_system.session = session


def _socket_factory(stall_s: float) -> Callable[[_Address], socket.socket]:
    """
    Return what makes sockets that fail when, and only when, the peer takes no bytes for *stall_s* seconds.

    aiohttp's read timeout begins when the last byte of a request was handed to the kernel. With a server that
    stops reading in the middle of a body it never begins; with a slow one it begins while megabytes wait.
    """

    def make(address: _Address) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        # Half of it: the kernel looks only when it probes the peer, each time after twice as long.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(stall_s * 1000 / 2))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        return made

    return make
