"""Ways by which metrics leave a process: a page for Prometheus, a file for node_exporter, a Pushgateway."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import weakref
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    delete_from_gateway,
    push_to_gateway,
    start_http_server,
    write_to_textfile,
)

from ..config import printable_url
from ..errors import ConfigError
from ..eventlog.watchers import Watched

DEFAULT_PORT: Final = 9477
LOOPBACK: Final = "127.0.0.1"
JOB: Final = "spot_plugins"

GATEWAY_S: Final = 5.0
"""Longest wait in seconds for a Pushgateway to connect, and to answer."""

_HOST_AND_PORT: Final = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):(?P<port>\d+)")
_LOCAL_RANKS: Final = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")


class Outlet(Protocol):
    """One way. Its methods run on the thread of the metrics, and raise :exc:`OSError` if something fails."""

    target: str
    """The way as a user names it, without secrets."""
    is_periodic: bool
    """True if :meth:`write` is called now and then, not only after commits and notices."""

    def write(self, registry: CollectorRegistry, watched: Watched) -> None:
        """Bring what *registry* has to the target."""
        ...

    def close(self, watched: Watched, *, is_finished: bool) -> None:
        """Let go of the target. Remove what is there of a run that *is_finished*."""
        ...


class Page:
    """A page that a Prometheus reads, served by the first rank of each machine."""

    is_periodic = True  # a port that was taken may be free later

    def __init__(self, host: str, port: int) -> None:
        self.target = f"{host}:{port}"
        self._host = host.strip("[]")
        self._port = port
        self._server: WSGIServer | None = None

    def write(self, registry: CollectorRegistry, watched: Watched) -> None:
        """Begin to serve, unless that was done."""
        if self._server is None and _local_rank(watched) == 0:
            self._server, _ = start_http_server(self._port, self._host, registry)
            _servers.add(self._server)

    def close(self, watched: Watched, *, is_finished: bool) -> None:
        """Give the port back."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


class Textfile:
    """A file for the textfile collector of node_exporter, one for each rank. It is replaced whole."""

    is_periodic = True

    def __init__(self, directory: str) -> None:
        self.target = directory

    def write(self, registry: CollectorRegistry, watched: Watched) -> None:
        """Replace the file."""
        write_to_textfile(str(self._path(watched)), registry)

    def close(self, watched: Watched, *, is_finished: bool) -> None:
        """Remove the file of a run that is finished: nobody would ever change it again."""
        if is_finished:
            self._path(watched).unlink(missing_ok=True)

    def _path(self, watched: Watched) -> Path:
        run = hashlib.sha256(watched.config.url.encode()).hexdigest()[:12]
        return Path(self.target) / f"spot-{run}-{watched.rank}.prom"


class Gateway:
    """A Pushgateway, which keeps the newest metrics of each rank when its process is gone."""

    is_periodic = False

    def __init__(self, url: str) -> None:
        self.target = url

    def write(self, registry: CollectorRegistry, watched: Watched) -> None:
        """Replace the metrics of this rank."""
        push_to_gateway(self.target, JOB, registry, _group(watched), timeout=GATEWAY_S)

    def close(self, watched: Watched, *, is_finished: bool) -> None:
        """Remove the metrics of a run that is finished."""
        if is_finished:
            delete_from_gateway(self.target, JOB, _group(watched), timeout=GATEWAY_S)


def outlet_of(target: object) -> Outlet:
    """
    Return the outlet that *target* names: a port, HOST:PORT, the URL of a Pushgateway, or a directory.

    Raises:
        ConfigError: It names none of them.
    """
    if isinstance(target, int) and not isinstance(target, bool):
        return _page(LOOPBACK, target)
    if isinstance(target, os.PathLike | str):
        text = os.fspath(target)
        if isinstance(text, str) and text.startswith(("http://", "https://")):
            return _gateway(text)
        if isinstance(text, str) and (found := _HOST_AND_PORT.fullmatch(text)) is not None:
            return _page(found["host"], int(found["port"]))
        if isinstance(text, str) and Path(text).is_dir():
            return Textfile(os.path.abspath(text))
    raise ConfigError(
        f"target={target!r} is no place for metrics: give a port such as {DEFAULT_PORT}, an address such as "
        f"'0.0.0.0:{DEFAULT_PORT}', the URL of a Pushgateway, or an existing directory for node_exporter's text files"
    )


def _page(host: str, port: int) -> Page:
    if not 0 < port < 65536:
        raise ConfigError(f"target={port} is no port: give one from 1 to 65535, such as {DEFAULT_PORT}")
    return Page(host, port)


def _gateway(url: str) -> Gateway:
    if urlsplit(url).username is not None or urlsplit(url).query:
        raise ConfigError(
            f"target={printable_url(url)!r} has a password or a query, which a Pushgateway does not take in its URL: "
            f"leave it out, and let a proxy on this machine add it"
        )
    return Gateway(url)


def _group(watched: Watched) -> dict[str, str]:
    return {"run": printable_url(watched.config.url), "rank": str(watched.rank)}


def _local_rank(watched: Watched) -> int:
    """Return the number of this rank on its machine, or its rank if the launcher does not say."""
    for name in _LOCAL_RANKS:
        if (text := os.environ.get(name, "")).isdecimal():
            return int(text)
    return watched.rank


_servers: Final[weakref.WeakSet[WSGIServer]] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close a forked child's copy of the socket: a worker that outlives the trainer must not keep the port."""
    for server in _servers:
        with contextlib.suppress(OSError):
            server.socket.close()


os.register_at_fork(after_in_child=_close_in_child)
