"""Azure Blob Storage through adlfs: limited waits, no hidden retries, one request per object."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

from .base import ObjectInfo
from .fsspec_client import FsspecClient, seconds_of
from .http_limits import CONNECT_TIMEOUT_S, LARGEST_OBJECT_BYTES, READ_TIMEOUT_S, limits, prepare_session
from .redaction import Secrets

_TOKEN_TIMEOUT_S: Final = CONNECT_TIMEOUT_S + READ_TIMEOUT_S


class AzureClient(FsspecClient):
    """Azure Blob Storage through adlfs."""

    def prepare(self, file_system: Any, options: Mapping[str, Any], secrets: Secrets) -> None:
        """As :meth:`FsspecClient.prepare`."""
        from fsspec.asyn import sync

        connect_s, read_s = limits(options, "connection_timeout", "read_timeout")
        new = sync(file_system.loop, _bounded, file_system.service_client, connect_s, read_s, secrets)
        file_system.service_client = new

    def find(self, file_system: Any, root: str, prefix: str) -> list[ObjectInfo]:
        """As :meth:`FsspecClient.find`. adlfs itself takes a missing container for an empty one."""
        from fsspec.asyn import sync

        container, _, path = f"{root}/{prefix}".partition("/")

        async def find() -> list[ObjectInfo]:
            client = file_system.service_client.get_container_client(container)
            return [
                ObjectInfo(f"{container}/{blob.name}", blob.size, seconds_of(blob.last_modified))
                async for blob in client.list_blobs(name_starts_with=path, include=["metadata"])
                if (blob.metadata or {}).get("hdi_isfolder") != "true"
            ]

        return list(sync(file_system.loop, find))


async def _bounded(client: Any, connect_s: float | None, read_s: float | None, secrets: Secrets) -> Any:
    """Return a client like the new one *client*, with time limits and without retries."""
    from azure.core.pipeline.transport import AioHttpTransport
    from azure.storage.blob.aio import BlobServiceClient

    class Transport(AioHttpTransport):  # type: ignore[misc]
        """Reads each answer to its end, because the client asks again if that fails later."""

        async def send(self, request: Any, **config: Any) -> Any:
            if isinstance(request.data, bytes):  # which aiohttp hands to the kernel without a pause in between
                request.data = BytesIO(request.data)
            return await super().send(request, **{**config, "stream": False})

    transport = Transport(connection_timeout=connect_s, read_timeout=read_s)
    await transport.open()
    prepare_session(transport.session, read_s)
    credential: Any = client.credential
    if hasattr(credential, "get_token"):
        credential = _TimedCredential(credential, secrets)
    return BlobServiceClient(
        client.url,
        credential=credential,
        transport=transport,
        retry_total=0,
        max_single_put_size=LARGEST_OBJECT_BYTES,
        max_single_get_size=LARGEST_OBJECT_BYTES,
    )


class _TimedCredential:
    """A credential that gives a token within :data:`_TOKEN_TIMEOUT_S`, or an error."""

    def __init__(self, credential: Any, secrets: Secrets) -> None:
        self._credential = credential
        self._secrets = secrets

    async def get_token(self, *scopes: str, **kwargs: Any) -> Any:
        """Return a token for *scopes*."""
        import asyncio

        # wait: _TOKEN_TIMEOUT_S; the request fails, and is tried again
        token = await asyncio.wait_for(self._credential.get_token(*scopes, **kwargs), _TOKEN_TIMEOUT_S)
        self._secrets.add(token.token)
        return token
