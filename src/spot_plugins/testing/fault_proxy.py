"""A proxy between a training and a server, which breaks the way there as a test tells. Standard library only."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Final, Literal
from urllib.parse import urlsplit

_HOST: Final = "127.0.0.1"
_METHODS: Final = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")
_TICK_S: Final = 0.02
"""Seconds after which a thread sees at the latest that the proxy was switched."""
_CONNECT_S: Final = 10.0
_RECEIVE_BUFFER_BYTES: Final = 128 * 1024


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer to HTTP requests. Without *code* and *message* they are those of the status."""

    status: int
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Mode:
    """The fault that is switched on."""

    name: str
    number: int = 0
    answer: _Answer = _Answer(200)


class FaultProxy:
    """
    A proxy in front of a server without TLS, such as an object store for tests. Its faults are switched on and off.

    It is a context manager. Give the training :attr:`endpoint_url` instead of the URL of the server. A switch meets the
    connections that are open as well as new ones. The methods can be called from any thread.

    Args:
        target: URL of the server, such as ``http://127.0.0.1:9000``.
        protocol: The protocol of the store, in whose form :meth:`fail_with` answers: ``s3``, ``gs`` or ``az``.

    Raises:
        ValueError: *target* or *protocol* is something else.
    """

    endpoint_url: str
    """URL of the proxy, from the start of the ``with`` block on."""

    def __init__(self, target: str, protocol: Literal["s3", "gs", "az"] = "s3") -> None:
        if protocol not in ("s3", "gs", "az"):
            raise ValueError(f"protocol={protocol!r} is unknown to the proxy: give s3, gs or az")
        self._protocol = protocol
        self.lead_to(target)
        self._mode = _Mode("forward")
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._num_forwarded = 0
        self._num_returned = 0
        self._num_requests = 0

    def __enter__(self) -> FaultProxy:
        self._listener = socket.create_server((_HOST, 0), backlog=128)
        # Connections inherit it. A slow network does not hold megabytes, so neither must this.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self.endpoint_url = f"http://{_HOST}:{self._listener.getsockname()[1]}"
        self._start(self._accept)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        with self._lock:
            for each in self._open:  # wakes a thread that is blocked in sending
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            # wait: until it sees that the proxy is closed, whose sockets are shut down; the block ends
            thread.join()
        self._listener.close()

    @property
    def num_forwarded(self) -> int:
        """Bytes that the proxy has passed from clients to the server."""
        with self._lock:
            return self._num_forwarded

    @property
    def num_returned(self) -> int:
        """Bytes that the proxy has passed from the server to clients."""
        with self._lock:
            return self._num_returned

    @property
    def num_requests(self) -> int:
        """HTTP requests that the proxy has read, answered or not. While it hangs it reads none."""
        with self._lock:
            return self._num_requests

    @property
    def num_open(self) -> int:
        """Connections that are open now, on both sides of the proxy."""
        with self._lock:
            return len(self._open)

    def lead_to(self, target: str) -> None:
        """Pass new connections to *target*. Raise :exc:`ValueError` if it is no URL of a server without TLS."""
        try:
            parts = urlsplit(target)
            address = (parts.hostname, parts.port)
        except ValueError:  # such as a port that is no number
            address = (None, None)
        if not target.startswith("http://") or address[0] is None or address[1] is None:
            raise ValueError(f"target={target!r} must have a host and a port, as in http://127.0.0.1:9000")
        self._target = (address[0], address[1])

    def heal(self) -> None:
        """Pass everything on, as at the start."""
        self._mode = _Mode("forward")

    def refuse(self) -> None:
        """Reset all connections, as a server that is away."""
        self._mode = _Mode("refuse")

    def hang(self) -> None:
        """Accept connections, but neither read from them nor answer."""
        self._mode = _Mode("hang")

    def slow(self, bytes_per_s: int) -> None:
        """Pass *bytes_per_s* on, for each connection and direction. Raise :exc:`ValueError` if it is below 1."""
        if bytes_per_s < 1:
            raise ValueError(f"bytes_per_s={bytes_per_s} must be 1 or more. To pass nothing on, call hang()")
        self._mode = _Mode("slow", bytes_per_s)

    def reset_after(self, num_bytes: int) -> None:
        """Pass *num_bytes* of each client on, then reset its connection."""
        self._mode = _Mode("reset after", num_bytes)

    def cut_answers(self) -> None:
        """Pass each answer on without its end, then close the connection."""
        self._mode = _Mode("cut")

    def fail_with(self, status: int, code: str = "", message: str = "") -> None:
        """
        Answer each HTTP request with an error document, without asking the server.

        Args:
            status: The status of HTTP, such as 503.
            code: The code of the service, such as ``SlowDown``. Empty: the name of the status.
            message: The sentence of the service. Empty: the name of the status.

        Raises:
            ValueError: *status* is no status of HTTP.
        """
        if status not in {each.value for each in HTTPStatus}:
            raise ValueError(f"status={status} is no status of HTTP: give one such as 503")
        self._mode = _Mode("fail", answer=_Answer(status, code, message))

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            if _readable(self._listener):
                # wait: at once, because a connection is there; it is served by a thread of its own
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        """Own the connection of one client: pass on what comes, as the fault that is switched on has it."""
        with ExitStack() as stack, suppress(OSError):
            stack.enter_context(self._tracked(client))
            server: socket.socket | None = None
            mode, num_passed = self._mode, 0
            while not self._closed.is_set():
                mode, num_passed = self._mode, num_passed if self._mode == mode else 0
                if mode.name == "hang":
                    # wait: _TICK_S; it looks again which fault is switched on
                    self._closed.wait(_TICK_S)
                    continue
                if mode.name == "refuse" or (mode.name == "reset after" and num_passed >= mode.number):
                    # With a linger time of zero, closing means to reset.
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                ready = _readable(client, *([server] if server else []))
                if not ready or self._mode != mode:
                    continue
                if mode.name == "fail":
                    # Else it is the end of an idle connection, or the rest of a request that was given up.
                    # wait: at once, because bytes are there; they are looked at
                    if client.recv(8, socket.MSG_PEEK).startswith(_METHODS):
                        with self._lock:
                            self._num_requests += 1
                        _answer(client, mode.answer, self._protocol)
                    return
                if server is None:
                    # wait: _CONNECT_S; the connection of the client is closed
                    server = stack.enter_context(self._tracked(socket.create_connection(self._target, _CONNECT_S)))
                    server.settimeout(None)
                most = mode.number - num_passed if mode.name == "reset after" else 65536
                is_answer = client not in ready
                ends = (server, client) if is_answer else (client, server)
                if not (count := self._pass(*ends, mode, most, is_answer=is_answer)):
                    return
                num_passed += 0 if is_answer else count

    @contextmanager
    def _tracked(self, each: socket.socket) -> Iterator[socket.socket]:
        """Let :meth:`__exit__` shut *each* down, and close it at the end of the ``with`` block."""
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(each)
        try:
            yield each
        finally:
            with self._lock:
                self._open.discard(each)
            each.close()

    def _pass(self, source: socket.socket, sink: socket.socket, mode: _Mode, most: int, *, is_answer: bool) -> int:
        """Pass one piece of *most* bytes on. Return its size, or 0 if the connection is to be closed."""
        # wait: at once, because bytes are there; they are passed on
        data = source.recv(max(1, int(mode.number * _TICK_S)) if mode.name == "slow" else most)
        with self._lock:  # before they are sent, so that whoever gets an answer finds it counted
            if is_answer:
                self._num_returned += len(data)
            else:
                self._num_forwarded += len(data)
                self._num_requests += data.count(b" HTTP/1.1\r\n")
        is_cut = mode.name == "cut" and is_answer
        # wait: until the other side reads or the proxy is closed, which shuts the socket down; the next piece follows
        sink.sendall(data[:-1] if is_cut else data)
        if mode.name == "slow":
            # wait: the time that the bytes take at this speed; the next piece follows
            self._closed.wait(len(data) / mode.number)
        return 0 if is_cut else len(data)


def _readable(*sockets: socket.socket) -> list[socket.socket]:
    # wait: _TICK_S; the caller looks which fault is switched on
    return select.select(sockets, [], [], _TICK_S)[0]


def _answer(client: socket.socket, error: _Answer, protocol: str) -> None:
    """Read one request to its end and answer it with *error*."""
    request = b""
    while b"\r\n\r\n" not in request:
        # wait: until the client sends, ends, or the proxy is closed, which shuts the socket down; it is answered
        data = client.recv(65536)
        if not data:
            return
        request += data
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("expect", "").lower() == "100-continue":
        # wait: at once, because the client reads nothing else first; it sends its body
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    left = int(headers.get("content-length", 0)) - len(body)
    while left > 0:
        # wait: until the client sends, ends, or the proxy is closed, which shuts the socket down; it is answered
        data = client.recv(65536)
        if not data:
            return
        left -= len(data)
    phrase = HTTPStatus(error.status).phrase
    kind, document = _document(error, phrase, protocol) if error.status >= 400 else ("application/xml", "")
    answer = (
        f"HTTP/1.1 {error.status} {phrase}\r\nContent-Type: {kind}\r\n"
        f'Content-Length: {len(document)}\r\nETag: "0"\r\nConnection: close\r\n'
        + (f"x-ms-error-code: {error.code}\r\n" if protocol == "az" and error.code else "")
        + "\r\n"
    )
    # wait: until the client reads, ends, or the proxy is closed, which shuts the socket down; the connection ends
    client.sendall((answer + ("" if lines[0].startswith("HEAD ") else document)).encode())


def _document(error: _Answer, phrase: str, protocol: str) -> tuple[str, str]:
    """Return the type and the text of an error document."""
    code, message = error.code or phrase.replace(" ", ""), error.message or f"{phrase}, says the proxy"
    if protocol != "gs":
        return "application/xml", f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    errors = [{"reason": code, "message": message}]
    return "application/json", json.dumps({"error": {"code": error.status, "message": message, "errors": errors}})
