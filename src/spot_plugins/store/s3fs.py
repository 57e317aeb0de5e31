"""Settings of s3fs: limited waits, no hidden retries, one request per object."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 15.0
_UNSENT_BYTES: Final = 128 * 1024  # unsent bytes that the kernel may hold

# s3fs puts an object in one request if it is smaller than twice the chunk size and than 5 GiB, the limit of S3.
# A multipart upload must not happen, because it stays in the bucket, invisible and billed, if its writer is killed.
PUT_OPTIONS: Final[dict[str, Any]] = {"chunksize": 5 * 1024**3 // 2}

# No concurrent ranges, because they may come from two versions of the object.
GET_OPTIONS: Final[dict[str, Any]] = {"max_concurrency": 1}

_Address: TypeAlias = "tuple[int, int, int, str, tuple[Any, ...]]"


def s3_options(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return *storage_options* with timeouts added and retries switched off.

    A request to a server that hangs is given up after at most 20 s, at whatever moment the server begins to hang.
    Values in ``config_kwargs``, such as ``connect_timeout`` and ``read_timeout`` in seconds, are kept.
    """
    given = dict(storage_options.get("config_kwargs") or {})
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        # 5 tries of botocore for each of the 5 tries of s3fs would be 25 timeouts. And if the answer to a conditional
        # put gets lost, a retry finds the object of the first try, and reports that another writer has won.
        "retries": {"total_max_attempts": 1},
        **given,
    }
    if config["read_timeout"] is not None:
        factory = _socket_factory(config["read_timeout"])
        config["connector_args"] = {"socket_factory": factory, **config.get("connector_args", {})}
    return {**storage_options, "config_kwargs": config}


def prepare(file_system: Any) -> None:
    """Change settings for which s3fs has no option, before *file_system* sends its first request."""
    file_system.retries = 1  # for the reasons given in s3_options()
    if file_system.session is None:
        from aiobotocore.session import AioSession  # type: ignore[import-untyped]
        from botocore.handlers import add_expect_header  # type: ignore[import-untyped]

        session = AioSession(**file_system.kwargs)
        # This header asks for "100 Continue", and aiohttp waits for it without a timeout.
        session.unregister("before-call.s3", add_expect_header)
        file_system.session = session


def _socket_factory(stall_s: float) -> Callable[[_Address], socket.socket]:
    """
    Return a function that makes sockets. A socket fails if the peer takes no bytes for *stall_s* seconds.

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
